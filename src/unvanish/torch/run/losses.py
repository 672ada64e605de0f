"""The loss of every step without waiting for a GPU: what is not on the CPU is fetched 64 steps at a time."""

from __future__ import annotations

import math
from array import array

import torch
from torch import Tensor

_FETCH = 64

Value = float | Tensor


class Losses:
    """The losses of one optimizer's steps, eight bytes each."""

    def __init__(self) -> None:
        self.values = array("d")
        self.wake = 0  # the first step to be attended to; those before it are only counted
        self.first_bad: int | None = None
        self._waiting: list[tuple[int, list[Value]]] = []

    def add(self, values: list[Value]) -> None:
        """The loss of one step: the mean over its backward passes (NaN for none)."""
        if any(isinstance(value, Tensor) for value in values):
            self._waiting.append((len(self.values), values))
            self.values.append(math.nan)
            if len(self._waiting) >= _FETCH:
                self.fetch()
        else:
            self._set(len(self.values), [float(value) for value in values])

    def fetch(self) -> None:
        """Read what still lies on a GPU."""
        waiting, self._waiting = self._waiting, []
        flat = [value for _, values in waiting for value in values]
        if not flat:
            return
        device = next(value.device for value in flat if isinstance(value, Tensor))
        parts = [v.double() if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.double) for v in flat]
        numbers = iter(torch.stack([part.to(device) for part in parts]).tolist())
        for index, values in waiting:
            self._set(index, [next(numbers) for _ in values])

    def _set(self, index: int, values: list[float]) -> None:
        mean = sum(values) / len(values) if values else math.nan
        if index == len(self.values):
            self.values.append(mean)
        else:
            self.values[index] = mean
        if values and self.first_bad is None and not math.isfinite(mean):
            self.first_bad = index


def value_of(loss: Tensor) -> Value:
    """A number on the CPU, where that costs little; elsewhere a tensor to be fetched later.

    Raises:
        RuntimeError: it has not one element.
    """
    return loss.item() if loss.is_cpu else loss.detach().reshape(())
