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
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps
_SMOOTH = 1e-5  # relative disagreement of D_h and D_{h/2} above which an output is not smooth; h^2 where it is
_ROUNDING = 16 * _EPS  # of a value with some cancellation behind it


class Slope(NamedTuple):
    """Along a cotangent: the extrapolated derivative, and the disagreements of first and of second differences."""

    value: float
    uneven: float
    bent: float


@dataclass(frozen=True, slots=True)
class Differences:
    """Of one output ``y``. ``smooth`` is None where every entry is; the others' differences are zero.

    ``rows``: f(x + h d) - f(x - h d); f(x + h d) + f(x - h d) - 2 y; the first with h/2; twice the second with h/2.
    """

    y: Tensor
    scale: float
    step: float
    rows: Tensor
    smooth: Tensor | None

    def along(self, cotangent: Tensor) -> Slope:
        """Sums over all entries."""
        whole, bend, half, half_bend = torch.mv(self.rows.view(4, -1), cotangent.reshape(-1)).tolist()
        whole, half = whole / (2 * self.step), half / self.step
        uneven, bent = whole - half, (bend - 2 * half_bend) / self.step
        return Slope(half + (half - whole) / 3, uneven, bent)

    def length(self, cotangent: Tensor) -> float:
        """Root of the sum of squares of what the entries contribute to the derivative."""
        return float(torch.linalg.vector_norm(cotangent * self.rows[2])) / self.step

    def rounding(self, cotangent: Tensor) -> float:
        """How much of that rounding alone can make."""
        return float(torch.linalg.vector_norm(self._size().mul_(cotangent))) * _ROUNDING / self.step

    def move(self) -> bool:
        """Does any entry move by more than rounding?"""
        return bool((self.rows[2].abs() > self._size().mul_(_ROUNDING)).any())

    def smooth_entries(self) -> int:
        """How many are not at a kink."""
        return self.y.numel() if self.smooth is None else int(self.smooth.sum())

    def _size(self) -> Tensor:
        return self.y.abs().add_(self.scale)


def differences(y: Tensor, scale: float, around: Sequence[Tensor], step: float) -> Differences:
    """``around``: the output at x + h d, x - h d, x + h d / 2, x - h d / 2. ``scale``: its typical size."""
    up, down, half_up, half_down = around
    rows = y.new_empty((4, *y.shape))
    whole, bend, half, half_bend = rows.unbind()
    torch.sub(up, down, out=whole)
    torch.add(up, down, out=bend)
    torch.sub(half_up, half_down, out=half)
    torch.add(half_up, half_down, out=half_bend)
    rows[1::2].sub_(y, alpha=2)
    half_bend.mul_(2)
    smooth = _smooth(y, scale, rows)
    if smooth is not None:
        rows.masked_fill_(~smooth, 0.0)
    return Differences(y, scale, step, rows, smooth)


def _smooth(y: Tensor, scale: float, rows: Tensor) -> Tensor | None:
    """Where both disagreements are within their limit; None if everywhere."""
    apart = torch.sub(rows[:2], rows[2:], alpha=2).abs_()  # of first differences, and half of that of second ones
    worst = float(apart.max())  # NaN if there is one
    if y.numel() == 1:  # a loss is blurred by kinks far below it, and judged as a whole
        return None if math.isfinite(worst) else torch.zeros_like(y, dtype=torch.bool)
    if worst <= _ROUNDING * scale:
        return None
    whole, bend, half = rows[:3].abs().unbind()
    limit = whole.add_(half, alpha=2).add_(bend, alpha=2).mul_(_SMOOTH)
    limit.add_(y.abs().add_(scale), alpha=2 * _ROUNDING)
    uneven, bent = apart.unbind()
    smooth = torch.maximum(uneven, bent.mul_(2)) <= limit  # not so for NaN
    smooth &= limit < math.inf
    return None if bool(smooth.all()) else smooth
