r"""At a kink any number between the two one-sided derivatives is right: judged entry by entry, where it is clear.

.. math:: f'_+(x; d) = \lim_{h \to 0} \frac{f(x + h d) - f(x)}{h},\qquad
          f'_-(x; d) = \lim_{h \to 0} \frac{f(x) - f(x - h d)}{h}

An output entry stands at a kink where both exist and differ.  Where several kinks meet of which some open upwards and
some downwards, as in :math:`2 |x_1| - \max(x_2, 0)`, a right backward may give a number outside of the two (Bolte and
Pauwels 2021, Conservative set valued fields): an entry is called wrong only if it opens to one side all around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unvanish.torch.gradcheck.differences import ROUNDING
from unvanish.torch.gradcheck.directional import Probe
from unvanish.torch.gradcheck.measure import spread
from unvanish.torch.gradcheck.opening import STEP, Entry, first_open_to_one_side

KINK_TOLERANCE = 1e-3  # one-sided differences with h and h / 2 agree by so much of the larger derivative
_OPEN = 1e-2  # the two sides differ by more than so much of the larger
_DIRECTIONS = 4
_MOST_ENTRIES = 16  # of each output: each takes one backward
_Direction = Sequence[Tensor | None]


@dataclass(frozen=True, slots=True)
class KinkCheck:
    """``judged`` entries stand clearly at a kink. Of one that is wrong: by which leaf, and what is at both sides."""

    judged: int = 0
    leaf: int | None = None
    index: tuple[int, ...] | None = None  # None: wrong only along a direction
    analytic: float = 0.0
    sides: tuple[float, float] = (0.0, 0.0)

    @property
    def nearest(self) -> float:
        """The one-sided derivative that backward's is nearest to."""
        return min(self.sides, key=lambda side: abs(side - self.analytic))


@dataclass(frozen=True, slots=True)
class _Sides:
    """One-sided derivatives of all entries of one output, flat; ``slack``: what counts as equal, not rounding alone."""

    right: Tensor
    left: Tensor
    steady: Tensor  # where both exist
    slack: Tensor
    rounding: Tensor

    @property
    def bend(self) -> Tensor:
        """1 where it opens upwards, -1 downwards, 0 where it is smooth or not clear."""
        opening = self.right - self.left
        larger = torch.maximum(self.right.abs(), self.left.abs())
        return opening.sign() * (self.steady & (opening.abs() > _OPEN * larger + 2 * self.slack))

    def exclude(self, analytic: float, entry: int) -> bool:
        """NaN is outside, too."""
        low, high = sorted((float(self.right[entry]), float(self.left[entry])))
        slack = float(self.slack[entry])
        return not low - slack <= analytic <= high + slack


@dataclass(frozen=True, slots=True)
class _Suspect:
    output: int
    entry: int
    row: list[Tensor]  # backward's derivatives by all leaves
    direction: _Direction
    sides: _Sides


def check_kinks(probe: Probe) -> KinkCheck:
    """Judge entries at kinks along random directions of all leaves together."""
    directions = [_direction(probe, positive=k == 0) for k in range(_DIRECTIONS)]
    found = [_sides(probe, direction) for direction in directions]
    judged, suspects = 0, []
    for output in probe.tracked:
        for entry in _clear([one[output] for one in found])[:_MOST_ENTRIES].tolist():
            judged += 1
            row = _row(probe, output, entry)
            tried = zip(directions, (one[output] for one in found), strict=True)
            bad = (_Suspect(output, entry, row, d, s) for d, s in tried if s.exclude(_along(row, d), entry))
            suspects += [one for one in (next(bad, None),) if one is not None]
    entries = [Entry(x.output, x.entry, float(x.sides.rounding[x.entry])) for x in suspects]
    wrong = first_open_to_one_side(probe, entries)
    return KinkCheck(judged - len(suspects)) if wrong is None else _located(probe, judged, suspects[wrong])


def _direction(probe: Probe, positive: bool = False) -> _Direction:
    shifts = probe.shifts(range(len(probe.leaves)))
    return [None if one is None else one.abs() for one in shifts] if positive else shifts


def _sides(probe: Probe, direction: _Direction) -> list[_Sides]:
    around = zip(*probe.around(direction, STEP), strict=True)
    return [_of_one(*(part.reshape(-1) for part in (y, *near))) for y, near in zip(probe.values, around, strict=True)]


def _of_one(y: Tensor, up: Tensor, down: Tensor, half_up: Tensor, half_down: Tensor) -> _Sides:
    right, half_right = (up - y) / STEP, (half_up - y) / (STEP / 2)
    left, half_left = (y - down) / STEP, (y - half_down) / (STEP / 2)
    rounding = (y.abs() + spread(y)) * (ROUNDING / STEP)
    slack = KINK_TOLERANCE * torch.maximum(right.abs(), left.abs()) + rounding
    steady = ((right - half_right).abs() <= slack) & ((left - half_left).abs() <= slack) & slack.isfinite()
    return _Sides(2 * half_right - right, 2 * half_left - left, steady, slack, rounding)


def _clear(directions: Sequence[_Sides]) -> Tensor:
    """Entries with two sides along all directions, that bend along some, and always to the same side."""
    bends = torch.stack([one.bend for one in directions])
    steady = torch.stack([one.steady for one in directions]).all(0)
    return (steady & (bends.sum(0).abs() == bends.abs().sum(0)) & bends.any(0)).nonzero().reshape(-1)


def _row(probe: Probe, output: int, entry: int) -> list[Tensor]:
    cotangents = [torch.zeros_like(y) for y in probe.values]
    cotangents[output].reshape(-1)[entry] = 1.0
    found = zip(probe.gradients(cotangents), probe.leaves, strict=True)
    return [torch.zeros_like(leaf.base) if gradient is None else gradient for gradient, leaf in found]


def _along(row: Sequence[Tensor], direction: _Direction) -> float:
    return sum(float((g * d).sum()) for g, d in zip(row, direction, strict=True) if d is not None)


def _located(probe: Probe, judged: int, found: _Suspect) -> KinkCheck:
    """The number that contributes most, if it is wrong by itself; else the direction is."""
    pairs = [(k, g, d) for k, (g, d) in enumerate(zip(found.row, found.direction, strict=True))]
    parts = [(k, g, (g * d).nan_to_num(torch.inf).abs()) for k, g, d in pairs if d is not None]
    leaf, gradient, part = max(parts, key=lambda one: float(one[2].max()))
    place = int(part.argmax())
    analytic, moved = float(gradient.reshape(-1)[place]), float(probe.reach(leaf).reshape(-1)[place])
    single = torch.zeros_like(part)
    single.reshape(-1)[place] = moved
    own = _sides(probe, [single if k == leaf else None for k in range(len(probe.leaves))])[found.output]
    if not own.exclude(analytic * moved, found.entry):
        sides = float(found.sides.left[found.entry]), float(found.sides.right[found.entry])
        return KinkCheck(judged, leaf, None, _along(found.row, found.direction), sides)
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), part.shape))
    sides = float(own.left[found.entry]) / moved, float(own.right[found.entry]) / moved
    return KinkCheck(judged, leaf, index, analytic, sides)
