"""Bounds that follow the norms of the last steps: their quantile, or the z-score of the new one."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, final

import torch

from unvanish.torch.clip.by_norm import limit_
from unvanish.torch.clip.checks import check_policy, check_state, count, number
from unvanish.torch.clip.gradients import Parameters
from unvanish.torch.clip.report import ClipReport, NonFinite
from unvanish.torch.clip.survey import survey


@final
class AutoClip:
    r"""Clips the global norm to a quantile of the norms of the last steps, this one included (AutoClip).

    .. math:: g \leftarrow g \min(1, Q_q(n_{t-h+1}, \dots, n_t) / n_t), \quad n_t = \lVert g_t \rVert

    The quantile interpolates linearly.  Norms that are NaN, Inf or exactly 0 are never remembered: they say nothing
    about the scale of the gradients.

    Args:
        quantile: between 0 (not included) and 1; the authors' 0.1 clips nine steps of ten.
        history: number of norms remembered, a whole number of at least 1; the authors keep all.
        nonfinite: what to do about NaN and Inf: "raise", "skip" or "zero".

    Raises:
        ValueError: ``quantile`` or ``history`` out of range.

    Example:
        >>> import torch
        >>> weight, clip = torch.zeros(1), AutoClip(quantile=0.5)
        >>> for norm in (1.0, 1.0, 100.0):
        ...     weight.grad = torch.tensor([norm])
        ...     report = clip(weight)
        >>> report.norm, weight.grad
        (100.0, tensor([1.]))

    Source: Seetharaman, Wichern, Pardo & Le Roux 2020, *AutoClip: adaptive gradient clipping for source separation
    networks*.
    """

    def __init__(self, quantile: float = 0.1, *, history: int = 1000, nonfinite: NonFinite = "raise") -> None:
        if not 0 < number(quantile) <= 1:
            raise ValueError(f"quantile={quantile!r} is no quantile to clip to. Expected 0 < quantile <= 1. Pass 0.1.")
        if count(history) < 1:
            raise ValueError(
                f"history={history!r} is no number of norms to remember. Expected a whole number of at least 1. "
                "Pass 1000."
            )
        check_policy(nonfinite)
        self.quantile = number(quantile)
        self.nonfinite: NonFinite = nonfinite
        self._norms: deque[float] = deque(maxlen=count(history))

    @torch.no_grad()
    def __call__(self, parameters: Parameters) -> ClipReport:
        """Clip the gradients of these parameters; call it once each step, after ``backward()``."""
        gradients, report = survey(parameters, self.nonfinite)
        if report.skipped or report.norm == 0:
            return report
        self._norms.append(report.norm)
        return limit_(gradients, report, self.maximum)

    @property
    def maximum(self) -> float:
        """The bound now in force; ``inf`` before the first norm."""
        if not self._norms:
            return math.inf
        ordered = sorted(self._norms)
        place = self.quantile * (len(ordered) - 1)
        low = ordered[math.floor(place)]
        return low + (ordered[math.ceil(place)] - low) * (place - math.floor(place))

    def state_dict(self) -> dict[str, Any]:
        """The remembered norms, oldest first, as plain numbers."""
        return {"norms": list(self._norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the norms of an earlier run, the last ``history`` of them."""
        check_state(state, {"norms"}, "norms")
        self._norms.clear()
        self._norms.extend(state["norms"])


@final
class ZClip:
    r"""Clips the global norm where it is an outlier among the last ones, and the harder, the further out (ZClip).

    .. math::
        z = \frac{n - \mu}{\sigma + 10^{-6} \mu}, \qquad
        z > z^*:\ g \leftarrow \frac{g}{n} \left(\mu + \sigma \frac{{z^*}^2}{z}\right)

    Mean and variance are those of the first ``warmup`` norms, in which nothing is clipped; then running ones of the
    clipped norms :math:`\hat n`: :math:`\mu \leftarrow \alpha \mu + (1 - \alpha) \hat n` and
    :math:`\sigma^2 \leftarrow \alpha \sigma^2 + (1 - \alpha) (\hat n - \mu)^2`.  The authors add :math:`10^{-6}` to
    :math:`\sigma`, which blinds it to gradients below that; here it is relative to the mean.  Norms that are NaN, Inf
    or exactly 0 never enter.

    Args:
        threshold: :math:`z^*`, above 0.
        decay: :math:`\alpha`, between 0 and 1, neither included.
        warmup: number of first norms, a whole number of at least 2.
        nonfinite: what to do about NaN and Inf: "raise", "skip" or "zero".

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> import torch
        >>> weight, clip = torch.zeros(1), ZClip(warmup=4)
        >>> for norm in (0.9, 1.1, 0.9, 1.1, 100.0):
        ...     weight.grad = torch.tensor([norm])
        ...     report = clip(weight)
        >>> print(report)
        gradient norm 100 over 1 tensors, 1 clipped
        >>> weight.grad
        tensor([1.0006])

    Source: Kumar, Owen, Chowdhury & Guera 2025, *ZClip: adaptive spike mitigation for LLM pre-training*.
    """

    def __init__(
        self, threshold: float = 2.5, *, decay: float = 0.97, warmup: int = 25, nonfinite: NonFinite = "raise"
    ) -> None:
        if not 0 < number(threshold) < math.inf:
            raise ValueError(f"threshold={threshold!r} is no z-score to clip at. Expected above 0. Pass 2.5.")
        if not 0 < number(decay) < 1:
            raise ValueError(f"decay={decay!r} is no share of the past to keep. Expected 0 < decay < 1. Pass 0.97.")
        if count(warmup) < 2:
            raise ValueError(
                f"warmup={warmup!r} is no number of norms that have a variance. Expected a whole number of at least 2. "
                "Pass 25."
            )
        check_policy(nonfinite)
        self.threshold = number(threshold)
        self.decay = number(decay)
        self.warmup = count(warmup)
        self.nonfinite: NonFinite = nonfinite
        self._first: list[float] = []
        self._mean = 0.0
        self._deviation = 0.0

    @torch.no_grad()
    def __call__(self, parameters: Parameters) -> ClipReport:
        """Clip the gradients of these parameters; call it once each step, after ``backward()``."""
        gradients, report = survey(parameters, self.nonfinite)
        if report.skipped or report.norm == 0:
            return report
        if len(self._first) < self.warmup:
            self._learn_first(report.norm)
            return report
        maximum = self._maximum(report.norm)
        self._learn(min(report.norm, maximum))
        return limit_(gradients, report, maximum)

    def _maximum(self, norm: float) -> float:
        score = (norm - self._mean) / (self._deviation + 1e-6 * self._mean)
        return self._mean + self._deviation * self.threshold**2 / score if score > self.threshold else norm

    def _learn_first(self, norm: float) -> None:
        self._first.append(norm)
        if len(self._first) == self.warmup:
            self._mean = math.fsum(self._first) / self.warmup
            self._deviation = math.hypot(*(norm - self._mean for norm in self._first)) / math.sqrt(self.warmup)

    def _learn(self, norm: float) -> None:
        self._mean = self.decay * self._mean + (1 - self.decay) * norm
        kept, new = math.sqrt(self.decay) * self._deviation, math.sqrt(1 - self.decay) * (norm - self._mean)
        self._deviation = math.hypot(kept, new)

    def state_dict(self) -> dict[str, Any]:
        """The first norms and the running mean and standard deviation, as plain numbers."""
        return {"first": list(self._first), "mean": self._mean, "deviation": self._deviation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the numbers of an earlier run, which must have had the same ``warmup``."""
        check_state(state, {"first", "mean", "deviation"}, "first")
        if len(state["first"]) > self.warmup or (len(state["first"]) == self.warmup) != (state["mean"] > 0):
            raise ValueError(
                f"the state has {len(state['first'])} first norms, this clipper warmup={self.warmup}. Expected the "
                "state of a clipper with the same warmup. Make this one so."
            )
        self._first = list(state["first"])
        self._mean, self._deviation = state["mean"], state["deviation"]
