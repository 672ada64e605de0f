"""Outputs that become one and the same for all samples, under a loss that compares them with one another, which then stops."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from unvanish.types import Flow, Moments, Site

_ALIKE = 0.03  # share of the last layer's output that still differs between samples
_FELL = 10.0  # times less differs than at the start: in size, for a share also falls where the mean grows
_LOOKS = 3  # in a row, each with less
_FLAT = 0.02  # of its value: how much the loss still moves in the last third of the steps
_STEPS = 15


@dataclass(frozen=True, slots=True)
class Collapse:
    """At ``site`` the share of the output that differs between samples fell from ``before`` to ``after``."""

    site: Site
    before: float
    after: float


def collapsed(flow: Flow) -> Collapse | None:
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
    return Collapse(last, before, after)


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
