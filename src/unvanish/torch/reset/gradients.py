"""The literal reading of "reset vanished gradients": small entries become entries of a fixed size."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from unvanish.torch.reset.scores.base import is_number


def reset_vanished_gradients_(parameters: Tensor | Iterable[Tensor], threshold: float, magnitude: float) -> int:
    r"""Set every gradient entry smaller than ``threshold`` to ``magnitude``, with the sign it has; in place.

    .. math:: g_i \leftarrow \operatorname{sign}(g_i)\, m \quad\text{where } 0 < |g_i| < t

    This is what articles for beginners mean by "resetting the gradient", and it is here to be compared with.  It does
    not bring a lost gradient back: the sign of an entry near the rounding error carries no information, and all
    entries get the same size, so the step is sign descent on noise.  It moves what has converged, too.  Mend the cause
    instead: the initialisation, dead units (:class:`~unvanish.torch.reset.UnitReset`), or the learning rate.

    An entry that is exactly 0 has no sign and stays 0 (frozen or unused rows stay where they are).  NaN stays NaN.

    Args:
        parameters: one tensor or several; their ``.grad`` (dense or sparse) is changed.  Those without one are left.
        threshold: entries with a smaller absolute value are reset, > 0.
        magnitude: their new absolute value, > 0.

    Returns:
        How many entries were reset.

    Raises:
        ValueError: a threshold or magnitude that is not a positive finite number, one that the gradient's dtype cannot
            hold, or a gradient that is complex, expanded, compressed or without numbers.  Nothing is changed then.

    Example:
        >>> w = torch.zeros(3, requires_grad=True)
        >>> w.grad = torch.tensor([1e-9, -1e-9, 0.5])
        >>> reset_vanished_gradients_([w], threshold=1e-6, magnitude=1e-3)
        2
        >>> w.grad
        tensor([ 0.0010, -0.0010,  0.5000])

    Source: the method as popular articles describe it; no paper is known to us that shows it to help.
    """
    _check_positive("threshold", threshold)
    _check_positive("magnitude", magnitude)
    gradients = list({id(p.grad): p.grad for p in _listed(parameters) if p.grad is not None}.values())
    for gradient in gradients:
        _check_gradient(gradient)
        _check_dtype(gradient, magnitude)
    return sum(_reset_(gradient, threshold, magnitude) for gradient in gradients)


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    listed = [parameters] if isinstance(parameters, Tensor) else parameters
    found = list(listed) if isinstance(listed, Iterable) else [listed]
    strange = [type(item).__name__ for item in found if not isinstance(item, Tensor)]
    if strange:
        raise ValueError(
            f"reset_vanished_gradients_ got a {strange[0]}. It must be a parameter or several. "
            "Give model.parameters(), or one tensor."
        )
    return found


def _reset_(gradient: Tensor, threshold: float, magnitude: float) -> int:
    if gradient.is_sparse:  # several entries for one place are summed first: only their sum is the gradient
        summed = gradient.coalesce()
        count = _reset_(summed._values(), threshold, magnitude)
        gradient.copy_(summed)
        return count
    with torch.no_grad():
        small = (gradient.abs() < threshold) & (gradient != 0)
        gradient.copy_(torch.where(small, gradient.sign() * magnitude, gradient))
    return int(small.count_nonzero())


def _check_positive(name: str, value: float) -> None:
    if not is_number(value) or value <= 0:
        raise ValueError(
            f"reset_vanished_gradients_ got {name}={value!r}. It must be a positive finite number. "
            "Choose it by the gradients of the layers that do learn."
        )


def _check_gradient(gradient: Tensor) -> None:
    if gradient.is_meta or gradient.layout not in (torch.strided, torch.sparse_coo):
        kind = "on the meta device" if gradient.is_meta else f"of layout {gradient.layout}"
        raise ValueError(
            f"reset_vanished_gradients_ met a gradient {kind}. It must have numbers, dense or in COO layout. "
            "Materialise the model, or convert the gradient."
        )
    dense = not gradient.is_sparse
    if dense and any(step == 0 and size > 1 for step, size in zip(gradient.stride(), gradient.shape, strict=True)):
        raise ValueError(
            "reset_vanished_gradients_ met an expanded gradient, whose entries share memory. Each must have its own. "
            "Give the parameter p.grad = p.grad.clone() first."
        )


def _check_dtype(gradient: Tensor, magnitude: float) -> None:
    if gradient.is_complex():
        raise ValueError(
            "reset_vanished_gradients_ met a complex gradient. The sign of an entry is defined for real numbers only. "
            "Leave complex parameters out of the list."
        )
    held = torch.tensor(magnitude, dtype=gradient.dtype).item()
    if held == 0 or not math.isfinite(held):
        raise ValueError(
            f"reset_vanished_gradients_ got magnitude={magnitude}, which is {held} in {gradient.dtype}. It must be a "
            "number this dtype can hold. Choose another magnitude, or keep these gradients in float32."
        )
