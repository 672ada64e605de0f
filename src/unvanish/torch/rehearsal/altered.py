"""What an experiment alters: a batch's precision, the scale of inputs and targets, that of what the loss reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.views.inputs import view_inputs
from unvanish.types import Flow


def widened(batch: Any) -> Any:
    """The batch with its half-precision tensors in float32."""
    if isinstance(batch, Tensor):
        return batch.float() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: widened(value) for key, value in batch.items()}
    return type(batch)(widened(part) for part in batch) if isinstance(batch, tuple | list) else batch


def movable(objective: Objective, batch: Any, lever: str) -> bool:
    """Only pairs of plain floating tensors can be standardised, and only odd scales are worth a try."""
    if objective.loss_fn is None or not isinstance(batch, tuple | list) or len(batch) != 2:
        return False
    part = batch[0] if lever.startswith("inputs") else batch[1]
    if not isinstance(part, Tensor) or not part.is_floating_point() or part.ndim == 0 or len(part) < 2:
        return False
    (view,) = view_inputs(part, None)
    assert view.moments is not None, "floating tensors are measured"
    spread = view.feature_spread or 1.0
    return not 0.05 < view.moments.rms < 5 or spread > 20 or abs(view.moments.mean) > 4 * (view.moments.batch_std or 1)


def standardized(batch: Any, *, inputs: bool, last: bool) -> tuple[Any, Any]:
    """(input, target) with one of the two brought to mean 0 and standard deviation 1 per feature.

    ``last``: features lie along the last axis, as of sequences; else along axis 1, as the channels of images do.
    """
    part = batch[0] if inputs else batch[1]
    features = part.ndim - 1 if last else 1
    axes = [0, *(axis for axis in range(1, part.ndim) if axis != features)]
    std = part.std(dim=axes, keepdim=True, correction=0)
    scaled = (part - part.mean(dim=axes, keepdim=True)) / torch.where(std > 0, std, torch.ones_like(std))
    return (scaled, batch[1]) if inputs else (batch[0], scaled)


class ScaledLogits(TorchFunctionMode):
    """Within this block cross-entropy, of classes or binary, reads ``factor`` times the logits it is given."""

    _LOSSES = (torch.nn.functional.cross_entropy, torch.nn.functional.binary_cross_entropy_with_logits)

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Scale the first argument of a loss; leave all other calls alone."""
        if func in self._LOSSES and args:
            args = (self._factor * args[0], *args[1:])
        return func(*args, **(kwargs or {}))


def features_last(flow: Flow) -> bool:
    """Do the first weights take the last axis of their input as features, as linear and recurrent ones do?"""
    kinds = ("linear", "recurrent", "convolution")
    first = next((site for site in flow.sites if site.kind in kinds), None)
    return first is not None and first.kind != "convolution" and len(first.shape) < 4
