"""One root cause, its symptoms folded under it.

Faults have an order: what goes in and what is wired wrong comes before what the weights do, and that before what the
optimizer makes of it.  Among findings of like confidence the one furthest upstream is the root; those that the root
explains become its symptoms; a fault of its own (a cut graph beside a wrong loss) stays a second finding.
"""

from __future__ import annotations

from dataclasses import replace

from unvanish import reading
from unvanish.types import Cause, Diagnosis, Finding, Flow

UPSTREAM: tuple[Cause, ...] = (
    "disconnected",
    "loss-mismatch",
    "precision",
    "symmetry",
    "input-scale",
    "normalization",
    "non-finite",
    "dead-units",
    "recurrent-depth",
    "saturation",
    "exploding",
    "initialization",
    "learning-rate-high",
    "depth",
    "learning-rate-low",
)
# faults of the program's text: nothing else explains them, so they are never a symptom
INDEPENDENT: tuple[Cause, ...] = ("disconnected", "loss-mismatch", "symmetry", "precision")
_STEP = 0.012  # how much confidence one place upstream is worth


def rank(flow: Flow, findings: list[Finding]) -> Diagnosis:
    """Root cause first, symptoms folded, and for a healthy network the numbers that say so."""
    ordered = sorted(findings, key=_weight, reverse=True)
    if not ordered:
        return Diagnosis((), flow, notes=_why_healthy(flow))
    root, rest = ordered[0], ordered[1:]
    own = [finding for finding in rest if finding.cause in INDEPENDENT and finding.confidence >= 0.9]
    symptoms = tuple(finding for finding in rest if finding not in own)
    return Diagnosis((replace(root, symptoms=symptoms), *own), flow)


def _weight(finding: Finding) -> float:
    return finding.confidence - _STEP * UPSTREAM.index(finding.cause)


def _why_healthy(flow: Flow) -> tuple[str, ...]:
    """The few numbers behind a silent report."""
    notes = []
    fall, reached = reading.fall(flow), reading.progress(flow)
    if fall is not None:
        notes.append(f"first layer's gradient is {reading.decades(-fall):+.1f} decades from the last's")
    if reached is not None:
        notes.append(f"{100 * reached:.0f} % of the loss removed on one batch")
    else:
        notes.append("learning was not tried")
    return tuple(notes)
