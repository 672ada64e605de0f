"""What is measured of a layer's units in one pass: sums over samples, so that ranks can be added up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unvanish.torch.reset.slopes import Family, slope_at
from unvanish.torch.reset.units import UnitAxis
from unvanish.torch.wiring import Op

FLAT_SHARE = 0.05  # below this share of the best slope an element is saturated; the probe uses the same


@dataclass(frozen=True, slots=True)
class UnitStatistics:
    """Of the U units of a layer, over all samples (and positions) of a batch.

    Attributes:
        samples: (U,) how many values each unit had.
        flat: (U,) at how many of them its derivative was below 5 % of the activation's best.
        magnitude: (U,) sum of |h|; zeros where no score reads it, other than of a softmax.
        steepest: (U,) largest |derivative|.
        outgoing: (U,) sum of |w| over all weights that read the unit; zeros where no score reads it.
        family: what the activation is like.
    """

    samples: Tensor
    flat: Tensor
    magnitude: Tensor
    steepest: Tensor
    outgoing: Tensor
    family: Family

    @property
    def mean_magnitude(self) -> Tensor:
        """(U,) mean of |h|."""
        return self.magnitude / self.samples


def together(calls: list[UnitStatistics]) -> UnitStatistics:
    """Statistics of a layer over all its calls in a pass."""
    if len(calls) == 1:
        return calls[0]
    return replace(
        calls[0],
        samples=torch.stack([call.samples for call in calls]).sum(dim=0),
        flat=torch.stack([call.flat for call in calls]).sum(dim=0),
        magnitude=torch.stack([call.magnitude for call in calls]).sum(dim=0),
        steepest=torch.stack([call.steepest for call in calls]).amax(dim=0),
    )


def measure(op: Op, family: Family, before: Tensor, after: Tensor | None, axis: UnitAxis) -> UnitStatistics:
    """Statistics of one activation.

    Args:
        op: the activation.
        family: what it is like.
        before: its input.
        after: its output, None where no score reads it.
        axis: where its units lie in both.
    """
    slope = slope_at(op, before).abs_()
    samples = axis.count(slope)
    return UnitStatistics(
        samples=samples,
        flat=axis.sum(slope < FLAT_SHARE * family.best_slope),
        magnitude=axis.sum(after.abs()) if after is not None else samples.new_zeros(len(samples)),
        steepest=axis.max(slope),
        outgoing=samples.new_zeros(len(samples)),
        family=family,
    )
