"""Dead: no gradient passes, for any sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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


def steepest_share(steepest: Tensor, best_slope: float) -> Tensor:
    r""":math:`\max_n |\varphi'(u_{nj})| / \max_x |\varphi'(x)|`: 0 for a unit that lets no gradient pass."""
    return steepest / best_slope


@dataclass(frozen=True, slots=True)
class Dead(AbstractScore):
    r"""A unit whose derivative was zero on all samples seen, at ``patience`` checks in a row.

    .. math:: s_j = \max_n |\varphi'(u_{nj})| \,/\, \max_x |\varphi'(x)| \le \text{zero}

    Meant for the ReLU family (ReLU, GELU, SiLU, ELU ...; a leaky ReLU cannot die); a unit of a tanh or sigmoid that is
    flat to the last bit counts as well.

    Attributes:
        zero: what is at most this share of the best slope passes nothing in float32 training.
        patience: checks in a row; several batches tell a dead unit from one that fires rarely.

    Example:
        >>> import torch
        >>> from unvanish.torch.reset import UnitReset
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> net[0].bias.data[3] = -100.0
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> reset = UnitReset(net, optimizer, Dead(patience=1), maturity=0)
        >>> for event in reset.check(torch.randn(64, 4)).events:
        ...     print(event.units, event.reason)
        (3,) its derivative was zero on every sample seen

    Source: Lu, Shin, Su and Karniadakis 2020, "Dying ReLU and initialization", definition of a dead neuron.
    """

    name: ClassVar[str] = "dead"
    reason: ClassVar[str] = "its derivative was zero on every sample seen"
    zero: float = 1e-6
    patience: int = 5

    def __post_init__(self) -> None:
        check_count("Dead", "patience", self.patience)
        check_share("Dead", "zero", self.zero)

    def judge(self, statistics: UnitStatistics, state: State, mature: Tensor) -> Judgement:
        """See :meth:`AbstractScore.judge`."""
        values = steepest_share(statistics.steepest, statistics.family.best_slope)
        found = lasting(values <= self.zero, state, self.patience)
        return Judgement(values, culprits(found, statistics) & mature)
