"""From scores to the units that are reset now: mature, the least alive first, never too many of a layer at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unvanish.torch.reset.scores import AbstractScore, Judgement, State
from unvanish.torch.reset.statistics import UnitStatistics


@dataclass(frozen=True, slots=True)
class Choice:
    """Units of one layer that one score chose.

    Attributes:
        score: which.
        units: (U,) bool.
        values: (U,) how alive each is.
        waiting: how many more it flagged that are beyond the cap.
    """

    score: AbstractScore
    units: Tensor
    values: Tensor
    waiting: int


def choose(
    scores: tuple[AbstractScore, ...],
    statistics: UnitStatistics,
    memory: dict[str, State],
    mature: Tensor,
    max_share: float,
) -> list[Choice]:
    """What each score chooses in one layer; a unit is chosen by one score only.

    Args:
        scores: in order of precedence.
        statistics: of the layer.
        memory: by score name what it remembers of the layer; is changed.
        mature: (U,) bool.
        max_share: of the layer's units, at most this share (but at least one) is chosen by all scores together.
    """
    room = max(1, int(max_share * len(mature) + 1e-9))
    free = mature
    choices = []
    for score in scores:
        judged = score.judge(statistics, memory.setdefault(score.name, {}), mature)
        flagged = judged.flagged & free
        found = int(flagged.sum())
        count = min(found, room)
        if count:
            choices.append(Choice(score, _least_alive(flagged, judged, count), judged.values, found - count))
        room -= count
        free = free & ~flagged
    return choices


def _least_alive(flagged: Tensor, judged: Judgement, count: int) -> Tensor:
    taken = torch.zeros_like(flagged)
    numbers = flagged.nonzero().flatten()
    taken[numbers[judged.values[numbers].argsort(stable=True)[:count]]] = True
    return taken


def forget_units(memory: dict[str, State], units: Tensor) -> None:
    """Clear what all scores remember of units that are new now."""
    for state in memory.values():
        for name, tensor in state.items():
            state[name] = tensor.masked_fill(units.reshape(-1, *[1] * (tensor.ndim - 1)), 0)
