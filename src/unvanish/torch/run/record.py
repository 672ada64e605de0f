"""What the steps of one optimizer told: losses of all, more of those that were looked at."""

from __future__ import annotations

import math
from typing import Any

from unvanish.torch.run.losses import Losses
from unvanish.types import Step


class Record:
    """By the number of the step; ``count`` is that of the coming one.

    ``facts`` = fields of a Step that was looked at; ``norms`` = ||gradient|| after backward and when the step is made;
    ``carried`` = share of the gradient left over from earlier steps;
    ``rates`` = learning rates of all groups; ``skipped`` = steps that a GradScaler left out.
    """

    def __init__(self) -> None:
        self.losses = Losses()
        self.facts: dict[int, dict[str, Any]] = {}
        self.norms: dict[int, tuple[float, float]] = {}
        self.carried: dict[int, float] = {}
        self.rates: dict[int, tuple[float, ...]] = {}
        self.skipped: set[int] = set()

    @property
    def count(self) -> int:
        """Steps so far."""
        return len(self.losses.values)

    def steps(self, most: int = 2000) -> tuple[Step, ...]:
        """All steps, thinned out evenly where there are very many; probed and skipped ones are always kept."""
        self.losses.fetch()
        stride = max(1, math.ceil(len(self.losses.values) / most))
        return tuple(
            Step(i, loss, skipped=i in self.skipped, **self._seen_at(i))
            for i, loss in enumerate(self.losses.values)
            if i % stride == 0 or i in self.facts or i in self.skipped or i == len(self.losses.values) - 1
        )

    def _seen_at(self, step: int) -> dict[str, Any]:
        if step not in self.facts:
            return {}
        rate, (after, used) = max(self.rates.get(step, ()), default=None), self.norms.get(step, (0.0, 0.0))
        clip = used / after if 0 < after < math.inf and math.isfinite(used) else None
        return {**self.facts[step], "clip": clip, "kept": self.carried.get(step), "rate": rate}

    def usual_rates(self) -> tuple[float, ...]:
        """The learning rates of most steps: each look stands for the steps up to the next."""
        groups = len(self.rates[max(self.rates)])
        looks = [(step, rates) for step, rates in sorted(self.rates.items()) if len(rates) == groups]
        ends = [*(step for step, _ in looks[1:]), self.count]
        weights = [end - step for (step, _), end in zip(looks, ends, strict=True)]
        return tuple(_middle([rates[k] for _, rates in looks], weights) for k in range(groups))


def _middle(values: list[float], weights: list[int]) -> float:
    """The weighted median; 0 of nothing."""
    passed = 0
    for value, weight in sorted(zip(values, weights, strict=True)):
        passed += weight
        if 2 * passed >= sum(weights):
            return value
    return 0.0
