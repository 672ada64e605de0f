"""Does the output open to one side all around, or do kinks that open upwards and downwards meet there?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unvanish.torch.gradcheck.directional import Probe

STEP = 1e-6  # of one-sided differences
_PLANES, _ANGLES = 3, 64  # every kink crosses each circle twice
_WHOLE = (0.0, 2 * math.pi)
_CLOSER = 2  # looks at what bends, each some twenty times closer
_FLAT = 1e-4  # of the largest derivative, times the angle: curvature times h
_Plane = tuple[Sequence[Tensor | None], Sequence[Tensor | None]]
_Arc = tuple[float, float]


class Entry(NamedTuple):
    """An entry of an output; ``rounding``: what of a one-sided difference that alone can make."""

    output: int
    entry: int
    rounding: float


def first_open_to_one_side(probe: Probe, entries: list[Entry]) -> int | None:
    """The first of them whose one-sided derivative is convex, or concave, on random circles of directions."""
    every = range(len(probe.leaves))
    planes = [(probe.shifts(every), probe.shifts(every)) for _ in range(_PLANES if entries else 0)]
    bends = [_bends(probe, entries, plane, _WHOLE) for plane in planes]
    for k, entry in enumerate(entries):
        around = [column[:, k] for column in bends]
        if len(_signs(*around)) < 2 and not _mixed(probe, entry, planes, around):
            return k
    return None


def _mixed(probe: Probe, entry: Entry, planes: Sequence[_Plane], around: Sequence[Tensor]) -> bool:
    """Does a second look, near where it bends on each circle, show that it bends to the other side, too?

    A small kink beside a larger one that opens the other way shows only between the two.
    """
    seen = _signs(*around)
    for plane, bends in zip(planes, around, strict=True):
        arcs = _where_bent(_WHOLE, bends)
        for _ in range(_CLOSER):
            looked = [(arc, _bends(probe, [entry], plane, arc)[:, 0]) for arc in arcs]
            seen |= _signs(*(found for _, found in looked))
            arcs = [closer for arc, found in looked for closer in _where_bent(arc, found)]
    return len(seen) > 1


def _signs(*bends: Tensor) -> set[float]:
    """1 if any bends upwards, -1 if any does downwards."""
    return {sign for found in bends for sign in found.unique().tolist() if sign}


def _where_bent(arc: _Arc, bends: Tensor) -> list[_Arc]:
    """The parts of an arc around the angles at which it bends, those side by side as one."""
    step = (arc[1] - arc[0]) / _ANGLES
    found: list[_Arc] = []
    for k in bends.nonzero().reshape(-1).tolist():
        low, high = arc[0] + (k - 1) * step, arc[0] + (k + 1) * step
        if found and low <= found[-1][1]:
            low = found.pop()[0]
        found.append((low, high))
    return found


def _bends(probe: Probe, entries: list[Entry], plane: _Plane, arc: _Arc) -> Tensor:
    r"""The side to which each bends (1 up, -1 down, 0 none seen) at angles along an arc: angles by entries.

    For a convex derivative :math:`f'(d_{-}) + f'(d_{+}) \ge f'(d_{-} + d_{+}) = 2 \cos\delta\, f'(d)` at every angle.
    """
    step = (arc[1] - arc[0]) / _ANGLES
    slopes = _slopes(probe, entries, plane, [arc[0] + k * step for k in range(-1, _ANGLES + 2)])
    gaps = slopes[:-2] + slopes[2:] - 2 * math.cos(step) * slopes[1:-1]
    noise = torch.tensor([one.rounding for one in entries])
    limit = 4 * noise + slopes.abs().amax(0) * (_FLAT * step)
    return gaps.sign() * (gaps.abs() > limit)


def _slopes(probe: Probe, entries: list[Entry], plane: _Plane, angles: Sequence[float]) -> Tensor:
    """Derivatives of the entries to the right along directions in a plane: angles by entries."""
    rows = []
    for angle in angles:
        c, s = math.cos(angle), math.sin(angle)
        turned = [None if a is None or b is None else c * a + s * b for a, b in zip(*plane, strict=True)]
        with probe.unit.moving(probe.leaves, turned) as at:
            values = at(STEP)
        moved = [(values[x.output] - probe.values[x.output]).reshape(-1)[x.entry] for x in entries]
        rows.append(torch.stack(moved).cpu() / STEP)
    return torch.stack(rows)
