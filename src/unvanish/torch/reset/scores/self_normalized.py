"""Self-normalised resets: silent for longer than this very unit ever is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unvanish.torch.reset.scores.base import AbstractScore, Judgement, State, check_count, check_share, culprits
from unvanish.torch.reset.statistics import UnitStatistics


def quantile_of_counts(counts: Tensor, share: float) -> Tensor:
    """The smallest g with at least ``share`` of a row's counts at 0..g; for a row without counts the last column.

    Args:
        counts: (U, G) how often each value 0..G-1 was seen.
        share: in [0, 1].

    Returns:
        (U,) int64.
    """
    total = counts.sum(dim=1, keepdim=True)
    reached = (counts.cumsum(dim=1) >= share * total) & (total > 0)
    last = counts.shape[1] - 1
    return torch.where(reached.any(dim=1), reached.int().argmax(dim=1), last)


@dataclass(frozen=True, slots=True)
class SelfNormalized(AbstractScore):
    r"""A unit that has been silent for longer than a quantile of its own earlier pauses.

    Time is counted in checks; a unit fires at a check when its derivative is not zero on some sample.  With
    :math:`a_j` the checks since it last fired and :math:`Q_j` the quantile of its pauses so far:

    .. math:: s_j = \tau_j - a_j < 0, \qquad \tau_j = \operatorname{clip}(Q_j, \text{minimum}, \text{maximum})

    A unit that fires rarely by nature gets a long time, one that fires always a short one.

    Source: Farias and Jozefiak 2024, "Self-Normalized Resets for Plasticity in Continual Learning".

    Attributes:
        percentile: of the unit's own pauses.
        minimum: nobody is reset for a shorter silence.
        maximum: nobody may be silent for longer; the memory is one int32 for each unit and length of pause.

    Example:
        >>> from unvanish.torch.reset import UnitReset
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> reset = UnitReset(net, torch.optim.Adam(net.parameters()), SelfNormalized(minimum=2), maturity=0)
        >>> x = torch.randn(64, 4)
        >>> len(reset.check(x).events)  # all fire: each unit's pauses are of one check
        0
        >>> net[0].bias.data[3] = -100.0
        >>> [[event.units for event in reset.check(x).events] for _ in range(3)]
        [[], [], [(3,)]]
    """

    name: ClassVar[str] = "self-normalized"
    reason: ClassVar[str] = "it has been silent for longer than its own earlier pauses"
    percentile: float = 0.99
    minimum: int = 3
    maximum: int = 100

    def __post_init__(self) -> None:
        check_share("SelfNormalized", "percentile", self.percentile)
        check_count("SelfNormalized", "minimum", self.minimum)
        check_count("SelfNormalized", "maximum", self.maximum)
        if self.maximum < self.minimum:
            raise ValueError(
                f"SelfNormalized got minimum={self.minimum} above maximum={self.maximum}. "
                "A pause is allowed between the two. Swap them."
            )

    def judge(self, statistics: UnitStatistics, state: State, mature: Tensor) -> Judgement:
        """See :meth:`AbstractScore.judge`."""
        fired = ~(statistics.steepest <= 1e-6 * statistics.family.best_slope)  # NaN is not silence
        units, longest = len(fired), self.maximum
        pauses = state.get("pauses", torch.zeros(units, longest + 1, dtype=torch.int32, device=fired.device))
        silent = state.get("silent", torch.zeros(units, dtype=torch.int64, device=fired.device)) + 1
        gap = silent.clamp(max=longest)
        pauses = pauses.scatter_add(1, gap[:, None], fired[:, None].to(pauses.dtype))
        silent = torch.where(fired, 0, silent)
        state["pauses"], state["silent"] = pauses, silent
        allowed = quantile_of_counts(pauses, self.percentile).clamp(self.minimum, self.maximum)
        values = (allowed - silent).to(torch.float64)
        return Judgement(values, culprits(values < 0, statistics) & mature)
