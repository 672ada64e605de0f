"""Dormant (ReDo): little activity, compared with the layer's average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unvanish.torch.reset.scores.base import AbstractScore, Judgement, State, check_count, is_number, lasting
from unvanish.torch.reset.statistics import UnitStatistics


def relative_activity(magnitude: Tensor) -> Tensor:
    r""":math:`\bar{|h_j|} / \operatorname{mean}_k \bar{|h_k|}`; zero in a layer without any activity.

    NaN for all where one is not finite: beside an infinity every unit would seem dormant.
    """
    mean = magnitude.mean()
    share = torch.where(mean == 0, torch.zeros_like(magnitude), magnitude / mean)
    return torch.where(mean.isfinite(), share, torch.nan)


@dataclass(frozen=True, slots=True)
class Dormant(AbstractScore):
    r"""A unit whose mean activity is at most ``tau`` of its layer's mean.

    .. math:: s_j = \frac{\mathbb{E}_n |h_{nj}|}{\frac1U \sum_k \mathbb{E}_n |h_{nk}|} \le \tau

    A saturated unit has a large |h| and never counts as dormant: use :class:`Saturated` for it.  Where a whole layer is
    silent, all of its units are dormant; ``max_share`` of UnitReset keeps them from being reset at once.

    Source: Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning" (ReDo).

    Attributes:
        tau: threshold, 0.025 in the paper's main results, 0 to 0.1 in its ablations.
        patience: checks in a row.

    Example:
        >>> from unvanish.torch.reset import UnitReset
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> net[0].weight.data[3], net[0].bias.data[3] = 0.001, 0.0  # it fires, but whispers
        >>> reset = UnitReset(net, torch.optim.Adam(net.parameters()), Dormant(), maturity=0)
        >>> [event.units for event in reset.check(torch.randn(64, 4)).events]
        [(3,)]
    """

    name: ClassVar[str] = "dormant"
    reason: ClassVar[str] = "its mean activity was next to nothing beside the layer's mean"
    values_read: ClassVar[bool] = True
    tau: float = 0.025
    patience: int = 1

    def __post_init__(self) -> None:
        check_count("Dormant", "patience", self.patience)
        if not is_number(self.tau) or not 0 <= self.tau < 1:
            raise ValueError(
                f"Dormant got tau={self.tau!r}. It must lie in [0, 1): at 1 the average unit would be dormant. "
                "The paper uses 0.025."
            )

    def judge(self, statistics: UnitStatistics, state: State, mature: Tensor) -> Judgement:
        """See :meth:`AbstractScore.judge`."""
        values = relative_activity(statistics.mean_magnitude)
        return Judgement(values, lasting(values <= self.tau, state, self.patience) & mature)
