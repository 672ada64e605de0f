r"""Entries that have a derivative along every direction, but none that is linear in it: no backward can be right there.

The middle one of three equal numbers moves with whichever :math:`d_i` is the middle one, and
:math:`|x + y| - |x - y|` at zero by :math:`2 \min(|d_x|, |d_y|)` to one side: differences along one direction look
smooth, and backward gives the derivative by convention.  Where a right derivative exists

.. math:: D f(x)[d + e] = D f(x)[d] + D f(x)[e].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unvanish.torch.gradcheck.differences import ROUNDING
from unvanish.torch.gradcheck.directional import Probe
from unvanish.torch.gradcheck.measure import spread

_STEP = 1e-6
_APART = 1e-4  # relative; curvature makes h^2 of it
_RING = 4  # directions, each added to the next


def leave_out_bent(probe: Probe, chosen: Sequence[int]) -> bool:
    """Measurements from now on leave out what is not linear along these leaves; gives whether anything new is not."""
    directions = [probe.shifts(chosen) for _ in range(_RING)]
    sums = [_added(one, other) for one, other in zip(directions, directions[1:] + directions[:1], strict=True)]
    slopes = [_slopes(probe, one) for one in (*directions, *sums)]
    found = False
    for k, y in enumerate(probe.values):
        single, added = (torch.stack([one[k] for one in part]) for part in (slopes[:_RING], slopes[_RING:]))
        gap = (added - single - single.roll(-1, 0)).abs()
        limit = _APART * single.abs().amax(0) + (y.abs() + spread(y)) * (4 * ROUNDING / _STEP)
        bent = (gap > limit).any(0)
        known = probe.bent.get(k, torch.zeros_like(bent))
        if bool((bent & ~known).any()):
            probe.bent[k], found = bent | known, True
    return found


def _added(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if a is None or b is None else a + b for a, b in zip(one, other, strict=True)]


def _slopes(probe: Probe, direction: Sequence[Tensor | None]) -> list[Tensor]:
    with probe.unit.moving(probe.leaves, direction) as at:
        up, down = at(_STEP), at(-_STEP)
    return [(a - b) / (2 * _STEP) for a, b in zip(up, down, strict=True)]
