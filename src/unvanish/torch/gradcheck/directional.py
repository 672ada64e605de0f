r"""One direction: the derivative that backward gives against the one that differences give.

For a piece :math:`y = f(x)`, a cotangent :math:`c` of length one and a direction :math:`d`

.. math:: \langle J^T c, d \rangle \quad\text{against}\quad
          \langle c, \tfrac43 D_{h/2} - \tfrac13 D_h \rangle,\qquad D_h = \frac{f(x + h d) - f(x - h d)}{2 h}

with Richardson's extrapolation (error :math:`O(h^4)`).  An output at a kink or a jump is known by its differences:
for a smooth one :math:`D_h` and :math:`D_{h/2}`, and :math:`S_h` and :math:`2 S_{h/2}` (second differences over h),
agree.  Such outputs get the cotangent 0, *before* backward runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unvanish.torch.gradcheck.precision import double_precision
from unvanish.torch.gradcheck.units import ForwardError, Unit

TOLERANCE = 1e-7
_EPS = torch.finfo(torch.float64).eps
_SMOOTH = 1e-5  # relative disagreement of D_h and D_{h/2} above which an output is not smooth; h^2 where it is
_ROUNDING = 16 * _EPS  # of a value with some cancellation behind it
_FLOOR = 1e-2  # an entry near zero moves by this much of the typical one
_WIDEST = 1e200
_COARSE = 1e-4  # the limit up to which a measurement says something at the first try


@dataclass(frozen=True, slots=True)
class Measure:
    """``gap`` (analytic - numeric) and ``allowed`` in units of the derivative; ``kinks``: share of outputs left out."""

    gap: float
    allowed: float
    kinks: float
    shares: tuple[float, ...]  # of each leaf in the analytic derivative
    unconnected: tuple[bool, ...]  # leaves that backward does not reach
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


@dataclass(frozen=True, slots=True)
class Numeric:
    """Per output: the extrapolated derivative, its plain estimate, the two disagreements, rounding, what is smooth."""

    slope: Tensor
    plain: Tensor
    uneven: Tensor
    bent: Tensor
    rounding: Tensor
    smooth: Tensor


class BackwardError(Exception):
    """Backward itself raised; the cause says what."""


class Probe:
    """A piece with its graph, ready for measurements along any direction."""

    def __init__(self, unit: Unit, generator: torch.Generator) -> None:
        self.unit, self.generator = unit, generator
        self.outputs, self.leaves, self._tensors = unit.first()
        self.values = unit.values(self.outputs)
        self._tracked = [k for k, y in enumerate(self.outputs) if y.requires_grad]
        self._scales = [spread(y) for y in self.values]
        self._widths = [1.0] * len(self.leaves)

    @property
    def judgeable(self) -> bool:
        """Is there anything to differentiate?"""
        return bool(self.leaves and self._tracked)

    def shifts(self, chosen: Sequence[int]) -> list[Tensor | None]:
        """A random direction of the chosen leaves; each entry moves in proportion to its size."""
        wanted = set(chosen)
        return [
            self._random(leaf.base).mul_(self.reach(k)) if k in wanted and not leaf.excused else None
            for k, leaf in enumerate(self.leaves)
        ]

    def reach(self, k: int) -> Tensor:
        """How far each entry moves for a step of one: its own size and a hundredth of the typical one."""
        leaf = self.leaves[k]
        reached = leaf.base.abs().add_(_FLOOR * spread(leaf.base)).nan_to_num_(0.0, 0.0, 0.0).mul_(self._widths[k])
        if leaf.padding is not None:
            reached[leaf.padding] = 0.0
        return reached

    def widen(self, k: int) -> None:
        """Let a leaf of tiny numbers, such as a bias of 1e-18, move as far as moves the outputs by their own size."""
        shifts = self.shifts([k])
        moved = _along(self.gradients(self.cotangents())[k], shifts[k])
        length = 0.0 if moved is None else _length([moved])
        self._widths[k] = min(1 / (length or spread(self.leaves[k].base)), _WIDEST)

    def _random(self, like: Tensor) -> Tensor:
        drawn = torch.empty(like.shape, dtype=like.dtype).uniform_(-1, 1, generator=self.generator)  # normal: 6x slower
        return drawn.to(like.device)

    def cotangents(self) -> list[Tensor]:
        """A random cotangent of length one; every output tensor has the same weight, whatever its size and scale."""
        drawn = [
            self._random(y).div_(scale * math.sqrt(y.numel())) if k in self._tracked else torch.zeros_like(y)
            for k, (y, scale) in enumerate(zip(self.values, self._scales, strict=True))
        ]
        length = math.sqrt(sum(float(c.square().sum()) for c in drawn)) or 1.0
        return [c.div_(length) for c in drawn]

    def measure(self, step: float, chosen: Sequence[int]) -> Measure:
        """One random direction and cotangent."""
        shifts = self.shifts(chosen)
        numerics = self.numerics(shifts, step)
        cotangents = self.cotangents()
        for cotangent, numeric in zip(cotangents, numerics, strict=True):
            cotangent.mul_(numeric.smooth)
        measure = _compared(cotangents, numerics, self.gradients(cotangents), shifts)
        loose = (numeric for k, numeric in enumerate(numerics) if k not in self._tracked)
        return replace(measure, adrift=any(bool((n.plain.abs() > n.rounding).any()) for n in loose))

    def repeated(self, chosen: Sequence[int], steps: Sequence[float], seed: int) -> list[Measure]:
        """The same direction and cotangent with several steps."""
        found = []
        for step in steps:
            self.generator.manual_seed(seed)
            found.append(self.measure(step, chosen))
        return found

    def gradients(self, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """Analytic derivatives by all leaves."""
        try:
            with double_precision():
                found = torch.autograd.grad(
                    [self.outputs[k] for k in self._tracked],
                    self._tensors,
                    [cotangents[k] for k in self._tracked],
                    retain_graph=True,
                    allow_unused=True,
                )
        except Exception as error:
            raise BackwardError from error
        return [g.to_dense() if g is not None and g.layout is not torch.strided else g for g in found]

    def numerics(self, shifts: Sequence[Tensor | None], step: float) -> list[Numeric]:
        """Differences of all outputs along a direction."""
        with self.unit.moving(self.leaves, shifts) as at:
            moved = [at(factor * step) for factor in (1.0, -1.0, 0.5, -0.5)]
        if any([y.shape for y in values] != [y.shape for y in self.values] for values in moved):
            raise ForwardError from ValueError("its outputs have other shapes when its inputs move a little")
        outputs = zip(self.values, self._scales, zip(*moved, strict=True), strict=True)
        return [_numeric(y, scale, around, step) for y, scale, around in outputs]


def _numeric(y: Tensor, scale: float, around: tuple[Tensor, ...], step: float) -> Numeric:
    up, down, half_up, half_down = around
    whole, half = (up - down).div_(2 * step), (half_up - half_down).div_(step)
    bend, half_bend = (up + down).sub_(y, alpha=2).div_(step), (half_up + half_down).sub_(y, alpha=2).mul_(2 / step)
    uneven, bent = (whole - half), bend - 2 * half_bend
    rounding = (y.abs() + scale).mul_(_ROUNDING / step)
    if y.numel() == 1:  # a loss is blurred by kinks far below it, and judged as a whole
        smooth = torch.isfinite(uneven + bent)
    else:
        limit = (whole.abs() + half.abs() + bend.abs()).mul_(_SMOOTH).add_(rounding)
        smooth = torch.maximum(uneven.abs(), bent.abs()) <= limit  # not so for NaN
        smooth &= limit < math.inf
    slope = half + (half - whole).div_(3)
    if not bool(smooth.all()):
        for part in (slope, half, uneven, bent, rounding):
            part.masked_fill_(~smooth, 0.0)
    return Numeric(slope, half, uneven, bent, rounding, smooth)


def _compared(
    cotangents: Sequence[Tensor],
    numerics: Sequence[Numeric],
    gradients: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
) -> Measure:
    pairs = list(zip(cotangents, numerics, strict=True))
    numeric = sum(dot(c, n.slope) for c, n in pairs)
    blur = max(abs(sum(dot(c, n.uneven) for c, n in pairs)), abs(sum(dot(c, n.bent) for c, n in pairs)))
    rounding = _length(c * n.rounding for c, n in pairs)
    moved = [_along(g, d) for g, d in zip(gradients, shifts, strict=True)]
    analytic = sum(float(part.sum()) for part in moved if part is not None)
    lengths = [0.0 if part is None else _length([part]) for part in moved]
    scale = max(math.hypot(*lengths), _length(c * n.plain for c, n in pairs))
    entries = sum(n.smooth.numel() for n in numerics)
    kinks = 1 - sum(int(n.smooth.sum()) for n in numerics) / entries
    shares = tuple(length / scale if scale else 0.0 for length in lengths)
    unconnected = tuple(g is None for g in gradients)
    if math.isnan(analytic) or math.isinf(analytic):
        return Measure(math.inf, TOLERANCE, kinks, shares, unconnected)
    if scale <= rounding:
        flat = not any(lengths) and kinks < 1
        return Measure(0.0, 0.0 if flat else math.inf, kinks, shares, unconnected)
    allowed = max(TOLERANCE, (10 * blur + rounding) / scale)
    return Measure((analytic - numeric) / scale, allowed, kinks, shares, unconnected)


def _along(gradient: Tensor | None, shift: Tensor | None) -> Tensor | None:
    if gradient is None or shift is None:
        return None
    part = gradient * shift
    return part if math.isfinite(float(part.sum())) else part.masked_fill_(shift == 0, 0.0)  # 0 * inf: not moved


def _length(parts: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(part.square().sum()) for part in parts))


def dot(one: Tensor, other: Tensor) -> float:
    """Inner product over all axes."""
    return float(torch.dot(one.reshape(-1), other.reshape(-1)))


def spread(values: Tensor) -> float:
    """Root mean square of the finite entries; 1 where there is nothing but zeros."""
    size = float(torch.linalg.vector_norm(values)) / math.sqrt(values.numel() or 1)
    if not math.isfinite(size):
        finite = values[torch.isfinite(values)]
        size = float(finite.abs().max().clamp(max=1e100)) if finite.numel() else 1.0
    return size or 1.0
