"""Low utility (continual backpropagation): the units that contribute least to the layers that read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unvanish.torch.reset.scores.base import AbstractScore, Judgement, State, check_share, is_number
from unvanish.torch.reset.statistics import UnitStatistics


def contribution(mean_magnitude: Tensor, outgoing: Tensor) -> Tensor:
    r""":math:`\mathbb{E}_n|h_{nj}| \sum_k |w_{kj}|`: what the readers of unit j would miss at most."""
    return mean_magnitude * outgoing


@dataclass(frozen=True, slots=True)
class LowUtility(AbstractScore):
    r"""The units of lowest utility, a small share ``rate`` of the mature ones at each check.

    .. math:: u_j \leftarrow \eta\, u_j + (1-\eta)\, \mathbb{E}_n|h_{nj}| \sum_k |w_{kj}|, \qquad
              s_j = u_j / (1 - \eta^{a_j})

    with :math:`a_j` the number of checks since unit j was made.  A share below one unit is saved up until it makes one.
    This score always finds somebody: it is made for streams whose task changes, not for one fixed task.

    Source: Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632, Methods.

    Attributes:
        rate: share of the mature units replaced at each check (the paper: 1e-4 at each step; at one check in 100 steps
            that is 0.01).
        decay: :math:`\eta`.

    Example:
        >>> from unvanish.torch.reset import UnitReset
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> net[2].weight.data[:, 3] = 0.001  # hardly anybody listens to it
        >>> reset = UnitReset(net, torch.optim.Adam(net.parameters()), LowUtility(rate=1 / 8), maturity=0)
        >>> [event.units for event in reset.check(torch.randn(64, 4)).events]
        [(3,)]
    """

    name: ClassVar[str] = "low-utility"
    reason: ClassVar[str] = "its activity times its outgoing weights was the smallest of the layer"
    values_read: ClassVar[bool] = True
    rate: float = 0.01
    decay: float = 0.99

    def __post_init__(self) -> None:
        check_share("LowUtility", "rate", self.rate)
        if not is_number(self.decay) or not 0 <= self.decay < 1:
            raise ValueError(f"LowUtility got decay={self.decay!r}. It must lie in [0, 1). The paper uses 0.99.")

    def judge(self, statistics: UnitStatistics, state: State, mature: Tensor) -> Judgement:
        """See :meth:`AbstractScore.judge`."""
        new = contribution(statistics.mean_magnitude, statistics.outgoing)
        nothing = torch.zeros_like(new)
        seen = new.isfinite()  # NaN or Inf would never leave the average again, and says nothing about utility
        before = state.get("utility", nothing)
        state["utility"] = torch.where(seen, self.decay * before + (1 - self.decay) * new, before)
        state["age"] = state.get("age", nothing) + seen
        # each mature unit brings its share of one reset; what is paid out is paid by those that are reset
        owed = state.get("owed", nothing) + self.rate * mature
        values = state["utility"] / (1 - self.decay ** state["age"])
        known = mature & seen
        count = min(math.floor(float(owed.sum()) + 1e-9), int(known.sum()))
        flagged = torch.zeros_like(mature)
        if count:
            lowest = torch.where(known, values, torch.inf).argsort(stable=True)[:count]
            flagged[lowest] = True
            owed = owed * max(0.0, 1 - count / float(owed.sum()))
        state["owed"] = owed
        return Judgement(values, flagged)
