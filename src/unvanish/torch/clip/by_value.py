"""Bounds for single entries."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch

from unvanish.torch.clip.checks import check_range
from unvanish.torch.clip.gradients import Gradient, Parameters
from unvanish.torch.clip.report import ClipReport, NonFinite
from unvanish.torch.clip.survey import measure_norms, survey


@torch.no_grad()
def clip_grad_value_(
    parameters: Parameters, maximum: float, *, minimum: float | None = None, nonfinite: NonFinite = "raise"
) -> ClipReport:
    r"""Bring every entry of every gradient into ``[minimum, maximum]``; this turns the direction.

    .. math:: g \leftarrow \min(\max(g, \text{minimum}), \text{maximum})

    Complex entries: real and imaginary part each.  The gradients are read once, and written only where one is outside.

    Args:
        parameters: a module, ``(name, tensor)`` pairs, tensors, or one tensor; any shape, dtype, device.
        maximum: largest entry, 0 or more.
        minimum: smallest entry, 0 or less; without it ``-maximum``.
        nonfinite: what to do about NaN and Inf: "raise", "skip" or "zero".

    Returns:
        What was seen and done; ``clipped`` counts gradients with at least one entry outside.

    Raises:
        ValueError: a bound that is NaN or no number, or bounds with no 0 or nothing but 0 between them; NaN or Inf in a
            gradient with "raise".

    Example:
        >>> import torch
        >>> weight = torch.zeros(3)
        >>> weight.grad = torch.tensor([-5.0, 0.5, 5.0])
        >>> print(clip_grad_value_(weight, 1.0))
        gradient norm 7.089 over 1 tensors, 1 clipped
        >>> weight.grad
        tensor([-1.0000,  0.5000,  1.0000])

    Source: Mikolov 2012, *Statistical language models based on neural networks* (thesis), chapter 3.
    """
    bounds = _Bounds(*check_range(minimum, maximum))
    gradients, report = survey(parameters, nonfinite, bounds)
    if report.skipped:
        return report
    outside = [gradient for gradient in gradients if bounds.cut(gradient)]
    for gradient in outside:
        gradient.data.clamp_(*bounds[gradient.data.dtype])
        gradient.commit()
    return replace(report, clipped=len(outside))


@final
class _Bounds(dict[torch.dtype, tuple[float, float]]):
    """The bounds in each dtype; measures gradients with what is needed to compare them."""

    def __init__(self, low: float, high: float) -> None:
        self._range = low, high

    def __missing__(self, dtype: torch.dtype) -> tuple[float, float]:
        self[dtype] = pair = _in_dtype(*self._range, dtype)
        return pair

    def __call__(self, gradients: list[Gradient]) -> None:
        # no entry is larger than the norm, which is rounded
        measure_norms(gradients, lambda dtype: 0.999 * min(-self[dtype][0], self[dtype][1]))

    def cut(self, gradient: Gradient) -> bool:
        """Whether an entry is outside."""
        low, high = self[gradient.data.dtype]
        return gradient.smallest < low or gradient.largest > high


def _in_dtype(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The bounds as this dtype has them: what was clipped once must not count as outside again."""
    most = torch.finfo(dtype).max
    pair: list[float] = torch.tensor([max(low, -most), min(high, most)], dtype=dtype).tolist()
    return pair[0], pair[1]
