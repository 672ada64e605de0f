"""Bounds for the norm of each gradient, and for the norm of all of them together."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate

import torch

from unvanish.torch.clip.checks import check_floor, check_maximum
from unvanish.torch.clip.gradients import Gradient, Parameters
from unvanish.torch.clip.report import ClipReport, NonFinite
from unvanish.torch.clip.scaling import most_at_0, rounding, scale_
from unvanish.torch.clip.survey import survey


@torch.no_grad()
def clip_grad_tensor_norm_(
    parameters: Parameters, maximum: float = math.inf, *, floor: float = 0.0, nonfinite: NonFinite = "raise"
) -> ClipReport:
    r"""Bring the L2 norm of every gradient into ``[floor, maximum]``, each by itself, directions kept.

    .. math::
        g_i \leftarrow \frac{g_i}{n_i} \min(\max(n_i, \text{floor}), \text{maximum}), \quad n_i = \lVert g_i \rVert

    ``floor`` rescues layers whose gradient has nearly vanished.  What it cannot do: a gradient of exactly 0 has no
    direction and stays 0 (``report.zero`` counts those); what is lost to rounding before it arrives does not come back;
    noise is raised like signal; and the layers no longer descend one common loss at one rate, so it is a rescue for
    plain SGD rather than a cure: RMSprop and Adam divide the norm out again.

    Args:
        parameters: a module, ``(name, tensor)`` pairs, tensors, or one tensor; any shape, dtype, device; the gradients
            in their own unit.  With names, errors speak of them.
        maximum: largest norm, above 0; ``inf`` sets no bound.
        floor: smallest norm of a gradient that is not exactly 0, at most ``maximum``.
        nonfinite: what to do about NaN and Inf: "raise", "skip" or "zero".

    Returns:
        What was seen and done; ``norm`` is that of all gradients together, before.

    Raises:
        ValueError: a bound that is no number, NaN, negative or out of order; NaN or Inf in a gradient with "raise".

    Example:
        >>> import torch
        >>> weight, bias = torch.zeros(2), torch.zeros(1)
        >>> weight.grad, bias.grad = torch.tensor([3e-30, 4e-30]), torch.tensor([20.0])
        >>> print(clip_grad_tensor_norm_([weight, bias], 10.0, floor=1.0))
        gradient norm 20 over 2 tensors, 1 clipped, 1 raised to the floor
        >>> weight.grad, bias.grad
        (tensor([0.6000, 0.8000]), tensor([10.]))

    Source: the upper bound per tensor is Keras' ``clipnorm``; the ratio of floor to norm is the layer-wise
    normalisation of You, Gitman & Ginsburg 2017 (LARS) without the norm of the weights.
    """
    maximum = check_maximum(maximum)
    floor = check_floor(floor, maximum)
    gradients, report = survey(parameters, nonfinite)
    if report.skipped:
        return report
    if floor:
        _check_range(gradients, floor)
    high = [gradient for gradient in gradients if is_above(gradient.norm, maximum, [gradient])]
    low = [gradient for gradient in gradients if _is_below(gradient, floor)]
    for gradient in high:
        scale_([gradient], (maximum, gradient.norm))
    for gradient in low:
        scale_([gradient], (floor, gradient.norm))
    return replace(report, clipped=len(high), raised=len(low))


@torch.no_grad()
def clip_grad_global_norm_(
    parameters: Parameters, maximum: float = math.inf, *, floor: float = 0.0, nonfinite: NonFinite = "raise"
) -> ClipReport:
    r"""Bring the L2 norm of all gradients together down to ``maximum``, their common direction kept.

    .. math:: g_i \leftarrow g_i \min(1, \text{maximum} / \lVert g \rVert), \quad
        \lVert g \rVert = \sqrt{\textstyle\sum_i \lVert g_i \rVert^2}

    With a ``floor``, no gradient but an exactly zero one ends below it, and the norm of all still is at most
    ``maximum``: :math:`\lVert g_i \rVert \leftarrow \max(\text{floor}, c \lVert g_i \rVert)` with the largest
    :math:`c \le 1` that allows it.  What a floor cannot do is told under ``clip_grad_tensor_norm_``.  Entries that
    clipping brings below the smallest number of their dtype become 0: in float16 that is 6e-8.

    Args:
        parameters: a module, ``(name, tensor)`` pairs, tensors, or one tensor; any shape, dtype, device.
        maximum: largest norm of all together, above 0; ``inf`` only measures.
        floor: smallest norm of a gradient that is not exactly 0; times the root of their number at most ``maximum``.
        nonfinite: what to do about NaN and Inf: "raise", "skip" or "zero".

    Returns:
        What was seen and done.

    Raises:
        ValueError: a bound that is no number, NaN, negative or out of order; NaN or Inf in a gradient with "raise".

    Example:
        >>> import torch
        >>> weight, bias = torch.zeros(1), torch.zeros(1)
        >>> weight.grad, bias.grad = torch.tensor([3e-30]), torch.tensor([4e-30])
        >>> print(clip_grad_global_norm_([weight, bias], 1e-30))
        gradient norm 5e-30 over 2 tensors, 2 clipped
        >>> weight.grad, bias.grad
        (tensor([6.0000e-31]), tensor([8.0000e-31]))

    Source: Pascanu, Mikolov & Bengio 2013, *On the difficulty of training recurrent neural networks*, algorithm 1.
    """
    maximum = check_maximum(maximum)
    floor = check_floor(floor, maximum)
    gradients, report = survey(parameters, nonfinite)
    if report.skipped:
        return report
    if not floor:
        return limit_(gradients, report, maximum)
    _check_range(gradients, floor)
    _check_room(gradients, floor, maximum)
    norms = [gradient.norm for gradient in gradients if gradient.norm > 0]
    share = common_factor(norms, floor, maximum)
    raised = math.hypot(*(max(floor, norm) for norm in norms))
    high = [each for each in gradients if each.norm > floor] if is_above(raised, maximum, gradients) else []
    low = [gradient for gradient in gradients if _is_below(gradient, floor)]
    for gradient in high:
        scale_([gradient], (max(floor, share * gradient.norm), gradient.norm))
    for gradient in low:
        scale_([gradient], (floor, gradient.norm))
    return replace(report, clipped=len(high), raised=len(low))


def limit_(gradients: list[Gradient], report: ClipReport, maximum: float) -> ClipReport:
    """Scale all gradients by one factor where their common norm is above ``maximum``."""
    if not is_above(report.norm, maximum, gradients):
        return report
    scale_(gradients, (maximum, report.norm))
    return replace(report, clipped=report.tensors - report.zero)


def is_above(norm: float, maximum: float, gradients: list[Gradient]) -> bool:
    """Whether the common norm of these is above the bound by more than clipping to it leaves by rounding.

    Else what was clipped once would be written again, and counted again, at every call.
    """
    if norm <= maximum:
        return False
    if norm > 1.01 * maximum + most_at_0({gradient.data.dtype for gradient in gradients}):  # spares a look at each
        return True
    return norm > maximum + math.hypot(*map(rounding, gradients))


def _is_below(gradient: Gradient, floor: float) -> bool:
    return 0 < gradient.norm < floor and gradient.norm < floor - rounding(gradient)


def common_factor(norms: list[float], floor: float, maximum: float) -> float:
    r"""Largest :math:`c \le 1` with :math:`\sum_i \max(\text{floor}, c \, n_i)^2 \le \text{maximum}^2`.

    The smallest ones stand at the floor; the others share what is left, and none of them may fall below it.
    """
    ordered = sorted(norms)
    together = list(accumulate(reversed(ordered), math.hypot))[::-1]  # of this one and all larger ones
    for at_floor, norm in enumerate(ordered):
        left = maximum * math.sqrt(max(0.0, 1 - at_floor * (floor / maximum) ** 2))
        share = min(1.0, left / together[at_floor])
        if share * norm >= floor:
            return share
    return floor / ordered[-1] if ordered and ordered[-1] > floor else 1.0


def _check_range(gradients: list[Gradient], floor: float) -> None:
    for gradient in gradients:
        if floor > torch.finfo(gradient.data.dtype).max:
            raise ValueError(
                f"floor={floor} is beyond {gradient.data.dtype}, the dtype of the gradient of {gradient}. Expected a "
                "floor that it can hold. Lower floor, or train in a wider dtype."
            )


def _check_room(gradients: list[Gradient], floor: float, maximum: float) -> None:
    if floor * math.sqrt(len(gradients)) > maximum:
        raise ValueError(
            f"{len(gradients)} gradients at floor={floor} have a common norm above maximum={maximum}. Expected "
            f"floor <= {maximum / math.sqrt(len(gradients)):.4g}. Lower floor or raise maximum."
        )
