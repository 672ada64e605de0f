r"""Central differences of one output along one direction, with two steps, and where they mean something.

.. math:: D_h = \frac{f(x + h d) - f(x - h d)}{2 h},\qquad \text{slope} = \tfrac43 D_{h/2} - \tfrac13 D_h

is Richardson's extrapolation (error :math:`O(h^4)`).  An entry at a kink or a jump is known by its differences: for a
smooth one :math:`D_h` and :math:`D_{h/2}`, and :math:`S_h` and :math:`2 S_{h/2}` (second differences over h), agree.

The differences are kept as they come, not divided by the step: sums over an output then are one product of a matrix
with its cotangent, and where nothing is suspicious one maximum shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
_SMOOTH = 1e-5  # relative disagreement of D_h and D_{h/2} above which an output is not smooth; h^2 where it is
ROUNDING = 16 * EPS  # of a value with some cancellation behind it
_CHUNK = 1 << 15  # entries at a time, which stay in the cache


class Slope(NamedTuple):
    """Along a cotangent: the extrapolated derivative, and the disagreements of first and of second differences."""

    value: float
    uneven: float
    bent: float


@dataclass(frozen=True, slots=True)
class Differences:
    """Of one output ``y``, flat. ``smooth`` is None where every entry is; all numbers of the others are zero.

    ``rows``: f(x + h d) - f(x - h d); f(x + h d) + f(x - h d) - 2 y; both once more with h/2.
    ``size``: of each entry, |y| and the typical one, which is what rounding goes by.
    """

    rows: Tensor
    size: Tensor
    step: float
    smooth: Tensor | None

    def along(self, cotangent: Tensor) -> Slope:
        """Sums over all entries."""
        whole, bend, half, half_bend = torch.mv(self.rows, cotangent.reshape(-1)).tolist()
        whole, half = whole / (2 * self.step), half / self.step
        uneven, bent = whole - half, (bend - 4 * half_bend) / self.step
        return Slope(half + (half - whole) / 3, uneven, bent)

    def length(self, cotangent: Tensor) -> float:
        """Root of the sum of squares of what the entries contribute to the derivative."""
        return float(torch.linalg.vector_norm(cotangent.reshape(-1) * self.rows[2])) / self.step

    def rounding(self, cotangent: Tensor) -> float:
        """How much of that rounding alone can make."""
        return float(torch.linalg.vector_norm(cotangent.reshape(-1) * self.size)) * ROUNDING / self.step

    def without(self, entries: Tensor) -> Differences:
        """The same with these entries left out, too."""
        left_out = entries.reshape(-1) if self.smooth is None else entries.reshape(-1) | ~self.smooth
        self.rows.masked_fill_(left_out, 0.0)
        return replace(self, size=self.size.masked_fill(left_out, 0.0), smooth=~left_out)

    def move(self) -> bool:
        """Does any entry move by more than rounding?"""
        return bool((self.rows[2].abs() > self.size * ROUNDING).any())

    def smooth_entries(self) -> int:
        """How many are not at a kink."""
        return self.size.numel() if self.smooth is None else int(self.smooth.sum())


def differences(y: Tensor, scale: float | Tensor, around: Sequence[Tensor], step: float) -> Differences:
    """``around``: the output at x + h d, x - h d, x + h d / 2, x - h d / 2. ``scale``: its typical size, or each's."""
    values = [part.reshape(-1) for part in (y, *around)]
    rows, size = y.new_empty((4, y.numel())), values[0].abs().add_(scale)
    if y.numel() <= _CHUNK:
        return Differences(rows, size, step, _filled(rows, size, *values))
    count = math.ceil(y.numel() / _CHUNK)  # of even size: a single entry is judged in another way
    chunks = zip(*(part.tensor_split(count, -1) for part in (rows, size, *values)), strict=True)
    found = [_filled(*chunk) for chunk in chunks]
    if all(smooth is None for smooth in found):
        return Differences(rows, size, step, None)
    everywhere = torch.ones_like(size, dtype=torch.bool)
    for part, smooth in zip(everywhere.tensor_split(count), found, strict=True):
        if smooth is not None:
            part.copy_(smooth)
    return Differences(rows, size, step, everywhere)


def _filled(
    rows: Tensor, size: Tensor, y: Tensor, up: Tensor, down: Tensor, half_up: Tensor, half_down: Tensor
) -> Tensor | None:
    """Write the rows; where the entries are smooth, None if everywhere."""
    whole, bend, half, half_bend = rows.unbind()
    torch.sub(up, down, out=whole)
    torch.add(up, down, out=bend)
    torch.sub(half_up, half_down, out=half)
    torch.add(half_up, half_down, out=half_bend)
    rows[1::2].sub_(y, alpha=2)
    smooth = _smooth(whole, bend, half, half_bend, size)
    if smooth is not None:
        rows.masked_fill_(~smooth, 0.0)
        size.masked_fill_(~smooth, 0.0)
    return smooth


def _smooth(whole: Tensor, bend: Tensor, half: Tensor, half_bend: Tensor, size: Tensor) -> Tensor | None:
    """Where both disagreements are within their limit; None if everywhere."""
    uneven, bent = torch.sub(whole, half, alpha=2).abs_(), torch.sub(bend, half_bend, alpha=4).abs_()
    apart = torch.maximum(uneven, bent.mul_(2))  # NaN where one is
    if size.numel() == 1:  # a loss is blurred by kinks far below it, and judged as a whole
        return None if math.isfinite(float(apart)) else torch.zeros_like(size, dtype=torch.bool)
    beyond = torch.sub(apart, size, alpha=2 * ROUNDING).sub_(whole.abs(), alpha=_SMOOTH)
    if float(beyond.max()) <= 0:  # a part of the limit is enough
        return None
    limit = whole.abs().add_(half.abs(), alpha=2).add_(bend.abs(), alpha=2).mul_(_SMOOTH)
    limit.add_(size, alpha=2 * ROUNDING)
    smooth = (apart <= limit) & (limit < math.inf)
    return None if bool(smooth.all()) else smooth
