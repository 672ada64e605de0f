"""Rounding that no output shows: what cancels within a piece leaves noise of the size of what was subtracted.

A LayerNorm of one feature gives x - mean = 0, give or take the rounding of x: its outputs are tiny, the noise in them
is as large, and a derivative of -8e-15 is the right one.  Moves in the last places show that noise, forward and
backward: they change nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from unvanish.torch.gradcheck.differences import EPS, ROUNDING
from unvanish.torch.gradcheck.directional import SCATTER, STILL, Probe
from unvanish.torch.gradcheck.measure import contribution, spread

_ULPS = (2, -2, 3, -3, 5, -5)


@contextmanager
def listening(probe: Probe, chosen: Sequence[int]) -> Iterator[bool]:
    """Measurements within know the noise along these leaves; gives whether it is more than was assumed."""
    with probe.unit.moving(probe.leaves, probe.shifts(chosen)) as at:
        moved = [at(ulps * EPS) for ulps in _ULPS]
    probe.noise = [_scattered(y, near) for y, near in zip(probe.values, zip(*moved, strict=True), strict=True)]
    known = zip(probe.noise, probe.values, strict=True)
    try:
        yield any(bool((noise * SCATTER > (y.abs() + spread(y)) * ROUNDING).any()) for noise, y in known)
    finally:
        probe.noise = None


def _scattered(y: Tensor, near: Sequence[Tensor]) -> Tensor:
    """How far each entry is off at the worst, and the typical one: some entry may have been lucky."""
    off = torch.stack([part - y for part in near]).abs_().amax(0).nan_to_num(0.0, 0.0, 0.0)
    return off + spread(off) if off.any() else off


def is_rounding(probe: Probe, k: int, derivative: float) -> bool:
    """Is backward's answer for this leaf noise: tiny, and another one when all moves in the last places?"""
    if derivative > probe.most_noise():
        return False
    cotangents, reach = probe.cotangents(), probe.reach(k)
    gradient = probe.gradients(cotangents)[k]
    near = [Probe(probe.unit.jittered(EPS * ulps), probe.draws).gradients(cotangents)[k] for ulps in _ULPS]
    scattered = [contribution(one - gradient, reach) for one in near if one is not None and gradient is not None]
    return gradient is not None and contribution(gradient, reach) <= STILL * max(scattered, default=0.0)
