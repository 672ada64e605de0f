r"""One direction: the derivative that backward gives against the one that differences give.

For a piece :math:`y = f(x)`, a cotangent :math:`c` of length one and a direction :math:`d`

.. math:: \langle J^T c, d \rangle \quad\text{against}\quad \langle c, D f(x)[d] \rangle

with the right side from ``differences``.  Outputs that are not smooth get the cotangent 0, *before* backward runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unvanish.torch.gradcheck.differences import ROUNDING, Differences, differences
from unvanish.torch.gradcheck.many import lengths_of
from unvanish.torch.gradcheck.measure import (
    Measure,
    analytic_along,
    compared,
    contribution,
    first_look,
    length_of,
    spread,
)
from unvanish.torch.gradcheck.stream import Draws
from unvanish.torch.gradcheck.units import ForwardError, Unit
from unvanish.torch.gradcheck.values import real

_FLOOR = 1e-2  # an entry near zero moves by this much of the typical one
_TINY = (
    1e-4  # times the outputs: moved in proportion such a leaf is no part of a joint direction, or drowns in rounding
)
_WIDEST = 1e200
SCATTER = 4  # times the largest of a few samples is what noise can make
STILL = 100  # a derivative that takes its input's whole size to move outputs by so much noise is zero
_MOST_NOISE = 1e-8  # of the largest numbers that go in and come out


class BackwardError(Exception):
    """Backward itself raised; the cause says what."""


class Probe:
    """A piece with its graph, ready for measurements along any direction."""

    def __init__(self, unit: Unit, draws: Draws) -> None:
        self.unit, self.draws = unit, draws
        self.outputs, self.leaves, self._tensors = unit.first()
        self.values = unit.values(self.outputs)
        self.tracked = [k for k, y in enumerate(self.outputs) if y.requires_grad]
        sizes = lengths_of(self.values)
        self.finite = all(map(math.isfinite, sizes))
        self._scales = [spread(y, size) for y, size in zip(self.values, sizes, strict=True)]
        self.noise: list[Tensor] | None = None  # in each entry of the outputs, where it was listened to
        self.bent: dict[int, Tensor] = {}  # of each output, the entries that are left out
        self._widths = [1.0] * len(self.leaves)
        self._lengths = lengths_of([leaf.base for leaf in self.leaves])
        self._spreads = [spread(leaf.base, size) for leaf, size in zip(self.leaves, self._lengths, strict=True)]
        self._kinked = False

    @property
    def judgeable(self) -> bool:
        """Is there anything to differentiate?"""
        return bool(self.tracked and any(leaf.base.numel() for leaf in self.leaves))

    def shifts(self, chosen: Sequence[int]) -> list[Tensor | None]:
        """A random direction of the chosen leaves; each entry moves in proportion to its size."""
        wanted = [k for k in chosen if not self.leaves[k].excused]
        found: list[Tensor | None] = [None] * len(self.leaves)
        if wanted:
            moved = self._reaches(wanted)
            torch._foreach_mul_(moved, self.draws.like_all([self.leaves[k].base for k in wanted]))
            for k, one in zip(wanted, moved, strict=True):
                found[k] = one
        return found

    def reach(self, k: int) -> Tensor:
        """How far each entry moves for a step of one: its own size and a hundredth of the typical one."""
        return self._reaches([k])[0]

    def _reaches(self, chosen: Sequence[int]) -> list[Tensor]:
        bases = [self.leaves[k].base for k in chosen]
        reached = list(torch._foreach_abs(bases))
        torch._foreach_add_(reached, [_FLOOR * self._spreads[k] for k in chosen])
        for k, one in zip(chosen, reached, strict=True):
            if not math.isfinite(self._lengths[k]):
                one.nan_to_num_(0.0, 0.0, 0.0)
            if self._widths[k] != 1.0:
                one.mul_(self._widths[k])
            if (padding := self.leaves[k].padding) is not None:
                one[padding] = 0.0
        return reached

    def tiny(self) -> list[int]:
        """Leaves whose numbers are so small beside the outputs that a step in proportion drowns in rounding."""
        limit = _TINY * max(self._scales)
        return [k for k in range(len(self.leaves)) if self._spreads[k] < limit]

    def widen(self, chosen: Sequence[int]) -> None:
        """Let leaves of tiny numbers, such as a bias of 1e-18, move as far as moves the outputs by their own size."""
        self.unwiden(chosen)
        cotangents = self.cotangents()
        size = math.hypot(*(scale * length_of(c) for scale, c in zip(self._scales, cotangents, strict=True)))
        gradients = self.gradients(cotangents)
        shifts = self.shifts(chosen)
        _, lengths = analytic_along(gradients, shifts)
        for k, (shift, length) in enumerate(zip(shifts, lengths, strict=True)):
            if shift is not None:
                self._widths[k] = min(size / length if length else 1 / self._spreads[k], _WIDEST)

    def unwiden(self, chosen: Sequence[int]) -> None:
        """Let them move in proportion to their own size again."""
        for k in chosen:
            self._widths[k] = 1.0

    def cotangents(self) -> list[Tensor]:
        """A random cotangent of length about one; every output has the same weight, whatever its size and scale."""
        weights = self._weights()
        drawn = iter(torch._foreach_mul(self.draws.like_all([self.values[k] for k in weights]), list(weights.values())))
        return [next(drawn) if k in weights else torch.zeros_like(y) for k, y in enumerate(self.values)]

    def _weights(self) -> dict[int, float]:
        """The largest cotangent of each output: its numbers are uniform, of variance one third."""
        length = math.hypot(*(1 / self._scales[k] for k in self.tracked)) or 1.0
        return {k: math.sqrt(3 / self.values[k].numel()) / (self._scales[k] * length) for k in self.tracked}

    def most_noise(self) -> float:
        """What is larger beside all that goes in and comes out is no rounding."""
        return _MOST_NOISE * max(*self._scales, *self._spreads)

    def measure(self, step: float, chosen: Sequence[int], *, briefly: bool = False) -> Measure:
        """One random direction and cotangent; with one step size, and where that does not agree with two.

        ``briefly``: what disagrees plainly is not looked at again.
        """
        shifts, cotangents = self.shifts(chosen), self.cotangents()
        plain = not (self._kinked or self.bent or self.noise)
        gradients = self.gradients(cotangents) if plain else None
        with self.unit.moving(self.leaves, shifts) as at:
            moved = self._alike([at(step), at(-step)])
            if gradients is not None:
                look = self._first_look(cotangents, moved, gradients, shifts, step)
                if look.passed or (briefly and look.plain):
                    return look
            moved += self._alike([at(step / 2), at(-step / 2)])
        numerics = self._differences(moved, step)
        if any(numeric.smooth is not None for numeric in numerics):
            cotangents = [
                c if n.smooth is None else c * n.smooth.view(c.shape) for c, n in zip(cotangents, numerics, strict=True)
            ]
            self._kinked, gradients = True, None
        still = STILL * math.hypot(*map(contribution, cotangents, self.noise or ()))
        if still > self.most_noise():
            still = -1.0  # a jump, or another output at each call: a derivative of zero is not known either
        known = self.gradients(cotangents) if gradients is None else gradients
        measure = compared(cotangents, numerics, known, shifts, still)
        loose = (numeric for k, numeric in enumerate(numerics) if k not in self.tracked)
        return measure._replace(adrift=True) if any(n.move() for n in loose) else measure

    def _first_look(
        self,
        cotangents: list[Tensor],
        moved: Sequence[list[Tensor]],
        gradients: Sequence[Tensor | None],
        shifts: Sequence[Tensor | None],
        step: float,
    ) -> Measure:
        apart = torch._foreach_sub(moved[0], moved[1])
        weights, numeric, noise = self._weights(), 0.0, 0.0
        for k, weight in weights.items():
            numeric += float(torch.dot(cotangents[k].reshape(-1), apart[k].reshape(-1)))
            noise = math.hypot(noise, weight * self._scales[k] * math.sqrt(self.values[k].numel() / 3))
        look = first_look(numeric / (2 * step), gradients, shifts, 2 * noise * ROUNDING / step)
        loose = [k for k in range(len(apart)) if k not in weights]
        limits = [(self.values[k].abs() + self._scales[k]) * (2 * ROUNDING) for k in loose]
        adrift = any(bool((apart[k].abs() > limit).any()) for k, limit in zip(loose, limits, strict=True))
        return look._replace(adrift=True) if adrift else look

    def repeated(self, chosen: Sequence[int], steps: Sequence[float]) -> Iterator[Measure]:
        """The same direction and cotangent with several steps, each as it is asked for."""
        here = self.draws.here()
        for step in steps:
            self.draws.back(here)
            yield self.measure(step, chosen)

    def gradients(self, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """Analytic derivatives by all leaves."""
        try:
            with self.unit.backward_conditions():
                found = torch.autograd.grad(
                    [self.outputs[k] for k in self.tracked],
                    self._tensors,
                    [cotangents[k] for k in self.tracked],
                    retain_graph=True,
                    allow_unused=True,
                )
        except Exception as error:
            raise BackwardError from error
        return [None if g is None else real(g if g.layout is torch.strided else g.to_dense()) for g in found]

    def around(self, shifts: Sequence[Tensor | None], step: float) -> list[list[Tensor]]:
        """All outputs a step and half a step to both sides."""
        with self.unit.moving(self.leaves, shifts) as at:
            return self._alike([at(factor * step) for factor in (1.0, -1.0, 0.5, -0.5)])

    def numerics(self, shifts: Sequence[Tensor | None], step: float) -> list[Differences]:
        """Differences of all outputs along a direction."""
        return self._differences(self.around(shifts, step), step)

    def _alike(self, moved: list[list[Tensor]]) -> list[list[Tensor]]:
        if any([y.shape for y in values] != [y.shape for y in self.values] for values in moved):
            raise ForwardError from ValueError("its outputs have other shapes when its inputs move a little")
        return moved

    def _differences(self, moved: Sequence[Sequence[Tensor]], step: float) -> list[Differences]:
        sizes = self._sizes()
        outputs = zip(self.values, zip(*moved, strict=True), strict=True)
        found = [differences(y, sizes[k], around, step) for k, (y, around) in enumerate(outputs)]
        return [one.without(self.bent[k]) if k in self.bent else one for k, one in enumerate(found)]

    def _sizes(self) -> list[Tensor] | list[float]:
        """What the outputs' rounding goes by: their own size, or the noise in them."""
        if self.noise is None:
            return self._scales
        pairs = zip(self.noise, self._scales, strict=True)
        return [noise.reshape(-1) * (SCATTER / ROUNDING) + scale for noise, scale in pairs]
