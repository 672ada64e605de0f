r"""One direction: the derivative that backward gives against the one that differences give.

For a piece :math:`y = f(x)`, a cotangent :math:`c` of length one and a direction :math:`d`

.. math:: \langle J^T c, d \rangle \quad\text{against}\quad \langle c, D f(x)[d] \rangle

with the right side from ``differences``.  Outputs that are not smooth get the cotangent 0, *before* backward runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unvanish.torch.gradcheck.differences import ROUNDING, Differences, differences
from unvanish.torch.gradcheck.stream import Draws
from unvanish.torch.gradcheck.units import ForwardError, Unit
from unvanish.torch.gradcheck.values import real

TOLERANCE = 1e-7
_FLOOR = 1e-2  # an entry near zero moves by this much of the typical one
_TINY = (
    1e-4  # times the outputs: moved in proportion such a leaf is no part of a joint direction, or drowns in rounding
)
_WIDEST = 1e200
SCATTER = 4  # times the largest of a few samples is what noise can make
STILL = 100  # a derivative that takes its input's whole size to move outputs by so much noise is zero
_MOST_NOISE = 1e-8  # of the largest numbers that go in and come out
_COARSE = 1e-4  # the limit up to which a measurement says something at the first try


@dataclass(frozen=True, slots=True)
class Measure:
    """``gap`` (analytic - numeric) and ``allowed`` in units of the derivative; ``kinks``: share of outputs left out."""

    gap: float
    allowed: float
    kinks: float
    shares: tuple[float, ...]  # of each leaf in the analytic derivative
    unconnected: tuple[bool, ...]  # leaves that backward does not reach
    rounding: float  # in units of the derivative, too
    scale: float  # the unit itself: the derivative by a move of the leaves' whole size
    adrift: bool = False  # an output moves that carries no gradient

    @property
    def error(self) -> float:
        """Relative error."""
        return abs(self.gap)

    @property
    def failed(self) -> bool:
        """Analytic and numeric derivative differ, and the differences are clear."""
        return self.error > self.allowed and self.allowed < 1

    @property
    def passed(self) -> bool:
        """They agree, and the differences are clear."""
        return self.error <= self.allowed <= _COARSE


class BackwardError(Exception):
    """Backward itself raised; the cause says what."""


class Probe:
    """A piece with its graph, ready for measurements along any direction."""

    def __init__(self, unit: Unit, draws: Draws) -> None:
        self.unit, self.draws = unit, draws
        self.outputs, self.leaves, self._tensors = unit.first()
        self.values = unit.values(self.outputs)
        self.tracked = [k for k, y in enumerate(self.outputs) if y.requires_grad]
        self._scales = [spread(y) for y in self.values]
        self.noise: list[Tensor] | None = None  # in each entry of the outputs, where it was listened to
        self.bent: dict[int, Tensor] = {}  # of each output, the entries that are left out
        self._widths = [1.0] * len(self.leaves)

    @property
    def judgeable(self) -> bool:
        """Is there anything to differentiate?"""
        return bool(self.tracked and any(leaf.base.numel() for leaf in self.leaves))

    def shifts(self, chosen: Sequence[int]) -> list[Tensor | None]:
        """A random direction of the chosen leaves; each entry moves in proportion to its size."""
        wanted = set(chosen)
        return [
            self.reach(k).mul_(self.draws.like(leaf.base)) if k in wanted and not leaf.excused else None
            for k, leaf in enumerate(self.leaves)
        ]

    def reach(self, k: int) -> Tensor:
        """How far each entry moves for a step of one: its own size and a hundredth of the typical one."""
        leaf = self.leaves[k]
        size = length_of(leaf.base)
        reached = leaf.base.abs().add_(_FLOOR * spread(leaf.base, size))
        if not math.isfinite(size):
            reached.nan_to_num_(0.0, 0.0, 0.0)
        if self._widths[k] != 1.0:
            reached.mul_(self._widths[k])
        if leaf.padding is not None:
            reached[leaf.padding] = 0.0
        return reached

    def tiny(self) -> list[int]:
        """Leaves whose numbers are so small beside the outputs that a step in proportion drowns in rounding."""
        limit = _TINY * max(self._scales)
        return [k for k, leaf in enumerate(self.leaves) if spread(leaf.base) < limit]

    def widen(self, chosen: Sequence[int]) -> None:
        """Let leaves of tiny numbers, such as a bias of 1e-18, move as far as moves the outputs by their own size."""
        self.unwiden(chosen)
        cotangents = self.cotangents()
        size = math.hypot(*(scale * length_of(c) for scale, c in zip(self._scales, cotangents, strict=True)))
        gradients = self.gradients(cotangents)
        for k, gradient, shift in zip(range(len(self.leaves)), gradients, self.shifts(chosen), strict=True):
            if shift is not None:
                _, length = _along(gradient, shift)
                self._widths[k] = min(size / length if length else 1 / spread(self.leaves[k].base), _WIDEST)

    def unwiden(self, chosen: Sequence[int]) -> None:
        """Let them move in proportion to their own size again."""
        for k in chosen:
            self._widths[k] = 1.0

    def cotangents(self) -> list[Tensor]:
        """A random cotangent of length one; every output tensor has the same weight, whatever its size and scale."""
        drawn = [self.draws.like(y) if k in self.tracked else torch.zeros_like(y) for k, y in enumerate(self.values)]
        weights = [1 / (scale * math.sqrt(y.numel())) for y, scale in zip(drawn, self._scales, strict=True)]
        length = math.hypot(*(w * length_of(c) for w, c in zip(weights, drawn, strict=True))) or 1.0
        return [c * (w / length) for w, c in zip(weights, drawn, strict=True)]

    def most_noise(self) -> float:
        """What is larger beside all that goes in and comes out is no rounding."""
        return _MOST_NOISE * max(*self._scales, *(spread(leaf.base) for leaf in self.leaves))

    def measure(self, step: float, chosen: Sequence[int]) -> Measure:
        """One random direction and cotangent."""
        shifts = self.shifts(chosen)
        numerics = self.numerics(shifts, step)
        cotangents = self.cotangents()
        for cotangent, numeric in zip(cotangents, numerics, strict=True):
            if numeric.smooth is not None:
                cotangent.mul_(numeric.smooth.view(cotangent.shape))
        still = min(STILL * math.hypot(*map(contribution, cotangents, self.noise or ())), self.most_noise())
        measure = _compared(cotangents, numerics, self.gradients(cotangents), shifts, still)
        loose = (numeric for k, numeric in enumerate(numerics) if k not in self.tracked)
        return replace(measure, adrift=True) if any(n.move() for n in loose) else measure

    def repeated(self, chosen: Sequence[int], steps: Sequence[float]) -> list[Measure]:
        """The same direction and cotangent with several steps."""
        found, here = [], self.draws.here()
        for step in steps:
            self.draws.back(here)
            found.append(self.measure(step, chosen))
        return found

    def gradients(self, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """Analytic derivatives by all leaves."""
        try:
            with self.unit.conditions():
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
            moved = [at(factor * step) for factor in (1.0, -1.0, 0.5, -0.5)]
        if any([y.shape for y in values] != [y.shape for y in self.values] for values in moved):
            raise ForwardError from ValueError("its outputs have other shapes when its inputs move a little")
        return moved

    def numerics(self, shifts: Sequence[Tensor | None], step: float) -> list[Differences]:
        """Differences of all outputs along a direction."""
        sizes = self._sizes()
        outputs = zip(self.values, zip(*self.around(shifts, step), strict=True), strict=True)
        found = [differences(y, sizes[k], around, step) for k, (y, around) in enumerate(outputs)]
        return [one.without(self.bent[k]) if k in self.bent else one for k, one in enumerate(found)]

    def _sizes(self) -> list[Tensor] | list[float]:
        """What the outputs' rounding goes by: their own size, or the noise in them."""
        if self.noise is None:
            return self._scales
        pairs = zip(self.noise, self._scales, strict=True)
        return [noise.reshape(-1) * (SCATTER / ROUNDING) + scale for noise, scale in pairs]


def _compared(
    cotangents: Sequence[Tensor],
    numerics: Sequence[Differences],
    gradients: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    still: float,
) -> Measure:
    pairs = list(zip(cotangents, numerics, strict=True))
    slopes = [n.along(c) for c, n in pairs]
    blur = max(abs(sum(slope.uneven for slope in slopes)), abs(sum(slope.bent for slope in slopes)))
    rounding = math.hypot(*(n.rounding(c) for c, n in pairs))
    moved = [_along(g, d) for g, d in zip(gradients, shifts, strict=True)]
    analytic, lengths = sum(total for total, _ in moved), [length for _, length in moved]
    scale = max(math.hypot(*lengths), math.hypot(*(n.length(c) for c, n in pairs)))
    kinks = 1 - sum(n.smooth_entries() for n in numerics) / sum(n.size.numel() for n in numerics)
    shares = tuple(length / scale if scale else 0.0 for length in lengths)
    unconnected = tuple(g is None for g in gradients)
    relative = rounding / scale if scale else math.inf if rounding else 0.0
    if math.isnan(analytic) or math.isinf(analytic):
        return Measure(math.inf, TOLERANCE, kinks, shares, unconnected, relative, scale)
    if scale <= rounding:
        flat = math.hypot(*lengths) <= still and kinks < 1
        return Measure(0.0, 0.0 if flat else math.inf, kinks, shares, unconnected, relative, scale)
    allowed = max(TOLERANCE, 10 * blur / scale + relative)
    gap = (analytic - sum(slope.value for slope in slopes)) / scale
    return Measure(gap, allowed, kinks, shares, unconnected, relative, scale)


def _along(gradient: Tensor | None, shift: Tensor | None) -> tuple[float, float]:
    """Sum and length of what the entries of a leaf contribute to the derivative."""
    if gradient is None or shift is None:
        return 0.0, 0.0
    part = gradient * shift
    total = float(part.sum())
    if not math.isfinite(total):
        part.masked_fill_(shift == 0, 0.0)  # 0 * inf: not moved
        total = float(part.sum())
    return total, length_of(part)


def contribution(cotangent: Tensor, values: Tensor) -> float:
    """Root of the sum of squares of what entries contribute."""
    return length_of(cotangent * values)


def length_of(values: Tensor) -> float:
    """Root of the sum of squares."""
    return float(torch.linalg.vector_norm(values))


def spread(values: Tensor, length: float | None = None) -> float:
    """Root mean square of the finite entries; 1 where there is nothing but zeros."""
    size = (length_of(values) if length is None else length) / math.sqrt(values.numel() or 1)
    if not math.isfinite(size):
        finite = values[torch.isfinite(values)]
        size = float(finite.abs().max().clamp(max=1e100)) if finite.numel() else 1.0
    return size or 1.0
