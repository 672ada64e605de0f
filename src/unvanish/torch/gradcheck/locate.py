"""The worst entry of a tensor whose derivative is wrong: halving along random directions, then entry by entry.

Where all entries are wrong by one factor, the worst is the largest: one random direction tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unvanish.torch.gradcheck.directional import Probe
from unvanish.torch.gradcheck.measure import length_of

_ALL = 64  # a tensor of up to so many entries is gone through whole
_TOP = 12  # of a larger one the entries with the largest analytic derivative, and what halving finds
_STARTS = 3
_STEP = 1e-4
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Entry:
    """Derivatives of the outputs, along one cotangent, by one entry."""

    index: tuple[int, ...]
    analytic: float
    numeric: float

    @property
    def gap(self) -> float:
        """Difference of the two; NaN counts as the worst."""
        gap = abs(self.analytic - self.numeric)
        return math.inf if math.isnan(gap) else gap


def worst_entry(probe: Probe, which: int, scaled: bool) -> Entry | None:
    """The entry with the largest difference among those looked at; None where none could be measured.

    ``scaled``: all are known to be wrong by one factor.
    """
    base = probe.leaves[which].base
    drawn = [c * ~probe.bent[k] if k in probe.bent else c for k, c in enumerate(probe.cotangents())]
    length = math.hypot(*map(length_of, drawn)) or 1.0
    cotangents = [c / length for c in drawn]
    gradient = probe.gradients(cotangents)[which]
    analytic = torch.zeros_like(base) if gradient is None else gradient
    flat = analytic.reshape(-1)
    search = _Search(probe, which, cotangents, flat)
    largest = int(flat.abs().nan_to_num(0.0, 0.0).argmax())
    if (entry := search.entry(largest)) is not None and (scaled or search.is_factor(entry)):
        return entry
    if flat.numel() <= _ALL:
        candidates = list(range(flat.numel()))
    else:
        broken = torch.nonzero(~torch.isfinite(flat)).reshape(-1)[:1].tolist()
        top = flat.abs().nan_to_num(0.0, 0.0).topk(_TOP).indices.tolist()
        candidates = list(dict.fromkeys([*broken, *top, *(search.halving() for _ in range(_STARTS))]))
    entries = [entry for k in candidates if (entry := search.entry(k)) is not None]
    return max(entries, key=lambda entry: entry.gap, default=None)


class _Search:
    def __init__(self, probe: Probe, which: int, cotangents: Sequence[Tensor], analytic: Tensor) -> None:
        self._probe, self._which, self._cotangents, self._analytic = probe, which, cotangents, analytic
        self._base = probe.leaves[which].base
        self._reach = probe.reach(which).reshape(-1)

    def _numeric(self, flat: Tensor) -> tuple[float, float]:
        """Derivative along a direction of this tensor, and how far its two estimates differ."""
        shifts: list[Tensor | None] = [None] * len(self._probe.leaves)
        shifts[self._which] = flat.reshape(self._base.shape)
        numerics = self._probe.numerics(shifts, _STEP)
        slopes = [n.along(c) for c, n in zip(self._cotangents, numerics, strict=True)]
        blur = max(abs(sum(slope.uneven for slope in slopes)), abs(sum(slope.bent for slope in slopes)))
        pairs = zip(self._cotangents, numerics, strict=True)
        kinks = any(n.smooth is not None and bool(c.reshape(-1)[~n.smooth].any()) for c, n in pairs)
        return sum(slope.value for slope in slopes), math.inf if kinks else blur

    def entry(self, k: int) -> Entry | None:
        """One entry; None at a kink."""
        moved = float(self._reach[k])
        if not moved:
            return None
        direction = torch.zeros_like(self._reach)
        direction[k] = moved
        numeric, blur = self._numeric(direction)
        numeric, blur = numeric / moved, blur / moved
        analytic = float(self._analytic[k])
        if abs(analytic - numeric) <= 2 * blur:  # also where the blur is infinite
            return None
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(k), self._base.shape))
        return Entry(index, analytic, numeric)

    def is_factor(self, entry: Entry) -> bool:
        """Is the derivative along a random direction wrong by the factor of this entry?"""
        if not entry.analytic:
            return False
        direction = self._random(self._analytic.numel())
        expected = float(torch.dot(self._analytic, direction)) * entry.numeric / entry.analytic
        numeric, blur = self._numeric(direction)
        return abs(numeric - expected) <= _SAME * abs(expected) and blur <= _SAME * abs(expected)

    def halving(self) -> int:
        """Follow the half that contributes more to the difference along a direction, down to one entry."""
        low, high = 0, self._analytic.numel()
        direction = self._random(high)
        whole = self._gap(direction, low, high)
        while high - low > 1:
            middle = (low + high) // 2
            first = self._gap(direction, low, middle)
            second = whole - first
            low, high, whole = (low, middle, first) if abs(first) >= abs(second) else (middle, high, second)
        return low

    def _random(self, count: int) -> Tensor:
        return self._probe.draws.own.draw(count).to(self._reach) * self._reach

    def _gap(self, direction: Tensor, low: int, high: int) -> float:
        part = torch.zeros_like(direction)
        part[low:high] = direction[low:high]
        gap = float(torch.dot(self._analytic.nan_to_num(0.0, 0.0, 0.0), part)) - self._numeric(part)[0]
        return gap if math.isfinite(gap) else 0.0
