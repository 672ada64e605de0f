"""Saturated: on the flat ends of tanh or sigmoid for nearly every sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unvanish.torch.reset.scores.base import (
    AbstractScore,
    Judgement,
    State,
    check_count,
    check_share,
    culprits,
    lasting,
)
from unvanish.torch.reset.statistics import UnitStatistics


def steep_share(flat: Tensor, samples: Tensor) -> Tensor:
    """Share of samples at which a unit is not flat: 0 for a unit that is always saturated."""
    return 1 - flat / samples


@dataclass(frozen=True, slots=True)
class Saturated(AbstractScore):
    r"""A unit of a bounded activation that is flat on nearly all samples, at ``patience`` checks in a row.

    .. math:: s_j = 1 - \operatorname{mean}_n\,[\,|\varphi'(u_{nj})| < 0.05 \max_x |\varphi'(x)|\,] \le 1 - \text{share}

    5 % of the best slope is tanh beyond 2.2 and sigmoid beyond 4.4.  Scores of activity cannot see such a unit: its
    output is near ±1, as lively as can be.  Which activations are bounded is found by evaluating them far out on both
    sides (tanh, sigmoid, hardtanh, softsign, erf, a function of your own); for all others this score says nothing: a
    ReLU that is off for 99 % of the samples is sparse, not ill.

    Of a softmax over n units :math:`\varphi'` is the diagonal of its Jacobian, :math:`p_j (1 - p_j)`, and compared with
    that of equal shares, :math:`\frac1n (1 - \frac1n)`: flat is a share below about 0.05/n, or as near to 1.  Here it
    has to be so on *all* samples, whatever ``share`` says, for among many units that take turns each is flat on most.
    Where one unit has nearly all, it alone is ill: the others have nothing because of it.

    Attributes:
        share: of the samples that have to be flat.
        patience: checks in a row.

    Example:
        >>> import torch
        >>> from unvanish.torch.reset import UnitReset
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> net[0].bias.data[3] = 5.0
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> reset = UnitReset(net, optimizer, Saturated(patience=1), maturity=0)
        >>> for event in reset.check(torch.randn(64, 4)).events:
        ...     print(event.units, event.reason)
        (3,) its derivative was below 5 % of the activation's best on (nearly) every sample

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", section
    3, for what saturated units do; the measure is ours.
    """

    name: ClassVar[str] = "saturated"
    reason: ClassVar[str] = "its derivative was below 5 % of the activation's best on (nearly) every sample"
    share: float = 0.99
    patience: int = 3

    def __post_init__(self) -> None:
        check_share("Saturated", "share", self.share)
        check_count("Saturated", "patience", self.patience)

    def judge(self, statistics: UnitStatistics, state: State, mature: Tensor) -> Judgement:
        """See :meth:`AbstractScore.judge`."""
        values = steep_share(statistics.flat, statistics.samples)
        if not statistics.family.bounded:
            return Judgement(torch.ones_like(values), torch.zeros_like(mature))
        share = 1.0 if statistics.family.competing else self.share
        # counts are whole numbers: compared so, a share of exactly 1 - share is not lost to rounding
        below = statistics.flat >= share * statistics.samples
        return Judgement(values, culprits(lasting(below, state, self.patience), statistics) & mature)
