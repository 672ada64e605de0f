"""Outputs that become one and the same for all samples, under a loss that compares them with one another, which then stops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from unvanish.rules import _flows
from unvanish.rules._mismatch.fault import AbstractMismatch, Fault
from unvanish.types import Flow, Moments, Site, Snapshot

_ALIKE = 0.03  # share of the last layer's output that still differs between samples
_FELL = 10.0  # times less differs than at the start: in size, for a share also falls where the mean grows
_LOOKS = 3  # in a row, each with less
_FLAT = 0.02  # of its value: how much the loss still moves in the last third of the steps
_STEPS = 15


@dataclass(frozen=True, slots=True)
class _Collapse:
    """At ``site`` the share of the output that differs between samples fell from ``before`` to ``after``."""

    site: Site
    before: float
    after: float


def _collapsed(flow: Flow) -> _Collapse | None:
    """The last layer's outputs have become alike from look to look, and the loss stands."""
    last = next((s for s in reversed(flow.sites) if s.kind in ("linear", "convolution") and s.forward), None)
    if last is None or flow.loss.kind != "other" or not _stands(flow) or not _compares(flow, last):
        return None
    seen = [m for sites in (flow.sites, *(look.sites for look in flow.snapshots)) if (m := _moments(sites, last))]
    spreads = [m.batch_std for m in seen if m.batch_std is not None]
    before, after = seen[0].separation, seen[-1].separation
    falling = len(spreads) > _LOOKS and all(a > b for a, b in itertools.pairwise(spreads[-_LOOKS - 1 :]))
    if not falling or before is None or after is None or after > _ALIKE or spreads[-1] * _FELL > spreads[0]:
        return None
    return _Collapse(last, before, after)


def _moments(sites: tuple[Site, ...], last: Site) -> Moments | None:
    return next((s.forward for s in sites if (s.label, s.call) == (last.label, last.call)), None)


def _stands(flow: Flow) -> bool:
    losses = [step.loss for step in flow.steps]
    late = losses[-len(losses) // 3 :]
    return len(losses) >= _STEPS and max(late) - min(late) <= _FLAT * max(map(abs, late))


def _compares(flow: Flow, last: Site) -> bool:
    """Does the loss see pairs of samples: a table of all, or outputs of several calls of the last layer?"""
    size = flow.batch_size or 0
    table = any(s.order > last.order and len(s.shape) > 1 and s.shape[0] == s.shape[1] >= size for s in flow.sites)
    return size > 1 and (table or last.call > 0)


@dataclass(frozen=True)
class Collapsing(AbstractMismatch):
    """A loss that compares samples with one another, and is pleased if they are all alike."""

    def faults(self, flow: Flow) -> Iterator[Fault]:
        seen = _collapsed(flow)
        if seen is not None:
            yield Fault(
                0.8, f"The outputs of all samples become the same: at {seen.site.label} what differs between samples fell from "
                f"{seen.before:.2g} to {seen.after:.1g} of the output, and the loss stands at {flow.steps[-1].loss:.3g}. So far the loss "
                "rewards outputs that lie close together more than outputs that lie where they should. Expected: a loss "
                "that no constant output pleases. Normalise the outputs, compare with less hard negatives (semi-hard, or all "
                "pairs), and take a smaller learning rate; without negatives stop the gradient on one side.",
                "normalise the embeddings, and mine semi-hard negatives or average over all pairs", seen.site.label,
                "Schroff et al. 2015, arXiv:1503.03832, section 3.2; Chen and He 2021, arXiv:2011.10566 (collapse)",
            )  # fmt: skip

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        cases = (("other", 0.1, True), ("other", 1e-5, False), ("mse", 1e-5, True))
        return tuple(_growing_alike(kind, end, stands=stands) for kind, end, stands in cases)

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        return (_growing_alike("other", 1e-5, stands=True),)


def _growing_alike(kind: str, end: float, *, stands: bool) -> Flow:
    """The loss compares all pairs; from look to look less differs between samples, down to ``end``; it stands or falls."""
    base = _flows.plain()
    flow = replace(base, loss=replace(base.loss, kind=kind, floor=None))
    pairs = Site("", "sub", "loss", len(flow.sites), (64, 64, 32))
    looks = []
    for k in range(6):
        moments = Moments(2048, 0.5, 0.0, 0.35 * (end / 0.7) ** (k / 5))
        looks.append((*(replace(s, forward=moments) for s in flow.sites), pairs))
    later = tuple(Snapshot(5 * k, sites, flow.parameters) for k, sites in enumerate(looks) if k)
    steps = tuple(
        replace(step, loss=0.5 + (0.1 * 0.8**i if stands else 0.01 * (30 - i))) for i, step in enumerate(flow.steps)
    )
    return replace(flow, sites=looks[0], snapshots=later, steps=steps)
