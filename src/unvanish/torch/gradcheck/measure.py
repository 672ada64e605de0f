"""One measurement: backward's derivative along a direction beside that of the differences, and what is certain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unvanish.torch.gradcheck.differences import Differences
from unvanish.torch.gradcheck.many import products

TOLERANCE = 1e-7
_COARSE = 1e-4  # the limit up to which a measurement says something at the first try
_CLEAR = (1e-2, 1e-5)  # what blurs a difference makes those with h and h/2 differ as much
_LIMITS = 10  # so many times the limit, and more than kinks met by chance make, needs no second step size


class Measure(NamedTuple):
    """``gap`` (analytic - numeric) and ``allowed`` in units of the derivative; ``kinks``: share of outputs left out."""

    gap: float
    allowed: float
    kinks: float
    shares: tuple[float, ...]  # of each leaf in the analytic derivative
    unconnected: tuple[bool, ...]  # leaves that backward does not reach
    rounding: float  # in units of the derivative, too
    scale: float  # the unit itself: the derivative by a move of the leaves' whole size
    analytic: float = 0.0  # what backward gives, in units of the derivative, too
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
    def clear(self) -> bool:
        """It failed by so much, with differences so sharp, that neither noise nor kinks can be behind it."""
        return self.error >= _CLEAR[0] and self.allowed <= _CLEAR[1]

    @property
    def plain(self) -> bool:
        """It failed, though with one step size, by more than rounding and a few kinks explain."""
        return self.allowed < 1 and self.error > max(_COARSE, _LIMITS * self.allowed)

    @property
    def passed(self) -> bool:
        """They agree, and the differences are clear."""
        return self.error <= self.allowed <= _COARSE


def compared(
    cotangents: Sequence[Tensor],
    numerics: Sequence[Differences],
    gradients: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    still: float,
) -> Measure:
    """From both step sizes. ``still``: a derivative below is zero."""
    pairs = list(zip(cotangents, numerics, strict=True))
    slopes = [n.along(c) for c, n in pairs]
    blur = max(abs(sum(slope.uneven for slope in slopes)), abs(sum(slope.bent for slope in slopes)))
    rounding = math.hypot(*(n.rounding(c) for c, n in pairs))
    analytic, lengths = analytic_along(gradients, shifts)
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
    return Measure(gap, allowed, kinks, shares, unconnected, relative, scale, analytic / scale)


def first_look(
    numeric: float, gradients: Sequence[Tensor | None], shifts: Sequence[Tensor | None], rounding: float
) -> Measure:
    """From one step size. It counts only where it agrees, so a scale that is too small for a wrong one does no harm."""
    analytic, lengths = analytic_along(gradients, shifts)
    scale = math.hypot(*lengths)
    shares = tuple(length / scale if scale else 0.0 for length in lengths)
    relative = rounding / scale if scale else math.inf
    gap = (analytic - numeric) / scale if scale else math.inf
    allowed = max(TOLERANCE, relative)
    return Measure(gap, allowed, 0.0, shares, tuple(g is None for g in gradients), relative, scale)


def analytic_along(gradients: Sequence[Tensor | None], shifts: Sequence[Tensor | None]) -> tuple[float, list[float]]:
    """The derivative that backward gives along the shifts, and how much of it is each leaf's."""
    pairs = [
        (k, g, d) for k, (g, d) in enumerate(zip(gradients, shifts, strict=True)) if g is not None and d is not None
    ]
    total, found = products([g for _, g, _ in pairs], [d for _, _, d in pairs])
    lengths = dict(zip((k for k, _, _ in pairs), found, strict=True))
    return total, [lengths.get(k, 0.0) for k in range(len(shifts))]


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
