"""One root cause, its symptoms folded under it.

Faults have an order: what goes in and what is wired wrong comes before what the weights do, and that before what the
optimizer makes of it.  Among findings of like confidence the one furthest upstream is the root; those that the root
explains become its symptoms; a fault of its own (a cut graph beside a wrong loss) stays a second finding.
"""

from __future__ import annotations

import math
from dataclasses import replace

from unvanish import reading
from unvanish.diagnosis import Diagnosis
from unvanish.types import Finding, Flow
from unvanish.vocabulary import Cause

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
_SURE = 0.9  # a second finding of its own must be as certain as this
_FLOORS = {
    "cross_entropy": "the class frequencies; ln C where classes are balanced",
    "nll": "the class frequencies",
    "bce": "the class frequencies",
    "bce_with_logits": "the class frequencies",
    "mse": "the mean of the targets",
    "l1": "the median of the targets",
}
_FEW = 3  # times fewer classes in a batch than chance would put there: they come in order
_STEP = 0.012  # how much confidence one place upstream is worth


def rank(flow: Flow, findings: list[Finding]) -> Diagnosis:
    """Root cause first, symptoms folded, with the few numbers that everybody asks for first as notes."""
    ordered = sorted(findings, key=_weight, reverse=True)
    notes, learning = _notes(flow), reading.improves(flow)
    if not ordered:
        return Diagnosis((), flow, notes, learning)
    root, rest = ordered[0], ordered[1:]
    own = [finding for finding in rest if finding.cause in INDEPENDENT and finding.confidence >= _SURE]
    symptoms = tuple(finding for finding in rest if finding not in own)
    return Diagnosis((replace(root, symptoms=symptoms), *own), flow, notes, learning)


def _weight(finding: Finding) -> float:
    """A cause that somebody else's rule has brought along counts as the last."""
    place = UPSTREAM.index(finding.cause) if finding.cause in UPSTREAM else len(UPSTREAM)
    return finding.confidence - _STEP * place


def _notes(flow: Flow) -> tuple[str, ...]:
    notes = []
    fall, reached, floor = reading.fall(flow), reading.progress(flow), flow.loss.floor
    if fall is not None and not math.isnan(fall):
        size = "exactly zero" if fall == math.inf else f"{reading.decades(-fall):+.1f} decades from the last's"
        notes.append(f"the first layer's gradient is {size}")
    outside = sum(p.registered and p.requires_grad and p.reached and p.in_optimizer is False for p in flow.parameters)
    if outside:
        notes.append(f"{outside} trainable parameters are not in the optimizer that was given")
    frozen = sum(not p.requires_grad for p in flow.parameters)
    if frozen and reading.improves(flow) is False:
        notes.append(f"{frozen} of {len(flow.parameters)} parameters are frozen (requires_grad=False)")
    if flow.classes_seen is not None and _FEW * flow.classes_seen[0] <= flow.classes_seen[1]:
        each, shuffled = flow.classes_seen
        notes.append(
            f"a batch holds labels of {each:g} classes; shuffled, it would hold {shuffled:.2g}: are the data in order?"
        )
    if reading.linear(flow) and not reading.learns(flow):
        notes.append("no activation stands between its layers, which together are one linear map")
    notes += [f"a state is cut off from its history: {cut.detail}" for cut in flow.cuts if cut.calls]
    if reached is None and not flow.experiments:
        notes.append("learning was not tried")
    elif reached is None:
        notes.append("the loss has no bottom to measure by")
    elif reached >= reading.LEARNS or floor is None or not flow.steps:
        where = "in training" if (reading.trains(flow) or 0.0) >= reached else "on one batch learnt by heart"
        notes.append(f"{100 * reached:.0f} % of the loss removed {where}")
    elif reading.at_floor(flow):
        notes.append(
            f"the loss stands at {flow.steps[-1].loss:.3g}: what a prediction reaches that ignores the input "
            f"({floor:.3g}, {_FLOORS.get(flow.loss.kind, 'a constant')})"
        )
    return tuple(notes)
