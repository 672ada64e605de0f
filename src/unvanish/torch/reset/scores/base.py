"""What a score is: how alive each unit of a layer is, and which are too little so."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import torch
from torch import Tensor

from unvanish.torch.reset.statistics import UnitStatistics

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Judgement:
    """``values``: how alive each unit is, the smallest the least so; ``flagged``: the units to be reset."""

    values: Tensor
    flagged: Tensor


class AbstractScore(ABC):
    """Judges the units of one layer by what was measured; what it has to remember, it keeps in ``state``.

    Every tensor in ``state`` has one row for each unit; the rows of a unit that was reset are set to zero.
    """

    name: ClassVar[str]
    reason: ClassVar[str]
    values_read: ClassVar[bool] = False  # does it read |h|?  What is not read is not measured

    @abstractmethod
    def judge(self, statistics: UnitStatistics, state: State, mature: Tensor) -> Judgement:
        """Judge the units by statistics of the samples seen since the last time.

        Args:
            statistics: of one layer, for U units.
            state: what this score remembers of the layer; empty at first.
            mature: (U,) bool, the units that may be reset.
        """


def lasting(below: Tensor, state: State, patience: int) -> Tensor:
    """Units for which ``below`` has now been true at ``patience`` checks in a row."""
    streak = state.get("streak", torch.zeros_like(below, dtype=torch.int64))
    state["streak"] = torch.where(below, streak + 1, 0)
    return state["streak"] >= patience


def culprits(found: Tensor, statistics: UnitStatistics) -> Tensor:
    """Of a softmax in which one unit has (nearly) all: that one alone, for the others have nothing because of it."""
    if not statistics.family.competing:
        return found
    greedy = found & (statistics.mean_magnitude > 0.5)
    return greedy if bool(greedy.any()) else found


def is_whole(value: object) -> bool:
    """Is it a whole number?  A bool is none, 2.0 neither."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def is_number(value: object) -> bool:
    """Is it a finite real number?"""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def check_share(name: str, field: str, value: float) -> None:
    """Raise where a share is outside [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} got {field}={value!r}. It must lie in [0, 1]. It is a share, not a percentage.")


def check_count(name: str, field: str, value: int) -> None:
    """Raise where a count is no whole number of at least 1."""
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} got {field}={value!r}. It must be a whole number of at least 1. It counts checks.")
