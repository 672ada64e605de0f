"""Bounds for single entries."""

from __future__ import annotations

from dataclasses import replace

import torch

from unvanish.torch.clip.gradients import Gradient, Parameters
from unvanish.torch.clip.norms import to_host
from unvanish.torch.clip.report import ClipReport, NonFinite
from unvanish.torch.clip.survey import survey


@torch.no_grad()
def clip_grad_value_(
    parameters: Parameters, maximum: float, *, minimum: float | None = None, nonfinite: NonFinite = "raise"
) -> ClipReport:
    r"""Bring every entry of every gradient into ``[minimum, maximum]``; this turns the direction.

    .. math:: g \leftarrow \min(\max(g, \text{minimum}), \text{maximum})

    Complex entries: real and imaginary part each.  A gradient whose norm is within both bounds needs no second look.

    Args:
        parameters: a module, ``(name, tensor)`` pairs, tensors, or one tensor; any shape, dtype, device.
        maximum: largest entry, 0 or more.
        minimum: smallest entry, 0 or less; without it ``-maximum``.
        nonfinite: what to do about NaN and Inf: "raise", "skip" or "zero".

    Returns:
        What was seen and done; ``clipped`` counts gradients with at least one entry outside.

    Raises:
        ValueError: a bound that is NaN, or bounds with no 0 or nothing but 0 between them; NaN or Inf in a gradient
            with "raise".

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
    low = -maximum if minimum is None else minimum
    _check(low, maximum)
    gradients, report = survey(parameters, nonfinite)
    if report.skipped:
        return report
    bounds = {dtype: _in_dtype(low, maximum, dtype) for dtype in {gradient.data.dtype for gradient in gradients}}
    # no entry is larger than the norm, which is rounded
    large = [one for one in gradients if one.norm >= 0.999 * min(-bounds[one.data.dtype][0], bounds[one.data.dtype][1])]
    outside = _outside(large, bounds)
    for gradient in outside:
        gradient.data.clamp_(*bounds[gradient.data.dtype])
        gradient.commit()
    return replace(report, clipped=len(outside))


def _in_dtype(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The bounds as this dtype has them: what was clipped once must not count as outside again."""
    most = torch.finfo(dtype).max
    pair: list[float] = torch.tensor([max(low, -most), min(high, most)], dtype=dtype).tolist()
    return pair[0], pair[1]


def _outside(gradients: list[Gradient], bounds: dict[torch.dtype, tuple[float, float]]) -> list[Gradient]:
    """Those with an entry out of bounds; this process's part of a distributed gradient may be empty."""
    filled = [gradient for gradient in gradients if gradient.data.numel()]
    extremes = to_host([extreme for gradient in filled for extreme in torch.aminmax(gradient.data)])
    return [
        gradient
        for gradient, low, high in zip(filled, extremes[::2], extremes[1::2], strict=True)
        if low < bounds[gradient.data.dtype][0] or high > bounds[gradient.data.dtype][1]
    ]


def _check(low: float, high: float) -> None:
    if not (low <= 0 <= high and low < high):
        raise ValueError(
            f"[{low}, {high}] is no range for gradients. Expected minimum <= 0 <= maximum, not both 0: other bounds "
            "turn gradients around or delete them. Swap or widen them."
        )
