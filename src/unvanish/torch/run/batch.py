"""What a loss was made of, where one network is called once, and one standard loss or its own reads its output.

Then the loss is built again, and believed only if it gives the value the user's own loss had.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.probe.graph import Graph
from unvanish.torch.probe.saved import readable
from unvanish.torch.rehearsal.objective import Objective, main_tensor
from unvanish.torch.run.tape import mapped
from unvanish.torch.views.floors import constant_loss
from unvanish.types import LossView

LARGEST = 50_000_000  # parameters of a model that is still copied
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": nn.functional.cross_entropy,
    "nll": nn.functional.nll_loss,
    "mse": nn.functional.mse_loss,
    "l1": nn.functional.l1_loss,
    "bce": nn.functional.binary_cross_entropy,
    "bce_with_logits": nn.functional.binary_cross_entropy_with_logits,
}


@dataclass(slots=True)
class Batch:
    """One call of one network, and the loss that was made of its output."""

    module: nn.Module
    inputs: Any
    target: Tensor | None
    loss: LossView

    @property
    def objective(self) -> Objective:
        """How ``data`` come to the loss."""
        own = self.target is None
        return Objective(None if own else _rebuilt(self.loss.kind, self.loss.reduction), None)

    @property
    def data(self) -> Any:
        """What the network is called with, and the target where the loss needs one."""
        return self.inputs if self.target is None else (self.inputs, self.target)


def batch_of(
    module: nn.Module, inputs: Any, output: Any, graph: Graph, loss: LossView, target: Tensor | None
) -> Batch | None:
    """What can be trained on again, or None where the loss cannot be built from the network's output."""
    if sum(p.numel() for p in module.parameters()) > LARGEST or not math.isfinite(loss.value):
        return None
    own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and _same(float(own.detach()), loss.value):
        return Batch(module, _cloned(inputs), None, replace(loss, value=float(own.detach())))
    nodes = [vertex for vertex in graph.vertices if vertex.kind == "loss"]
    if len(nodes) == 1 and readable(nodes[0]):
        saved = getattr(nodes[0].node, "_saved_target", None)
        target = target if saved is None else saved
    read = main_tensor(output)
    if read is None or target is None or loss.kind not in _LOSSES:
        return None
    try:
        with torch.no_grad():
            value, mean = (float(_rebuilt(loss.kind, how)(read.detach(), target)) for how in (loss.reduction, "mean"))
    except (RuntimeError, ValueError, IndexError):
        return None
    if not _same(value, loss.value):
        return None
    floor = constant_loss(loss.kind, target)
    floor = floor * value / mean if floor is not None and mean else floor
    return Batch(module, _cloned(inputs), target.detach().clone(), replace(loss, value=value, floor=floor))


def _rebuilt(kind: str, reduction: str | None) -> Callable[[Any, Tensor], Tensor]:
    """``loss_fn(output, target)`` on the tensor a loss would read; (samples, time, classes) are folded for classes."""

    def loss_fn(output: Any, target: Tensor) -> Tensor:
        read = main_tensor(output)
        assert read is not None, "there was one at the first step"
        if kind in ("cross_entropy", "nll") and read.ndim == 3 and target.ndim == 1:
            read = read.reshape(-1, read.shape[-1])
        elif read.numel() == target.numel() and read.shape != target.shape:
            read = read.reshape(target.shape)
        target = target if target.dtype == torch.long else target.float()
        return _LOSSES[kind](read.float(), target, reduction="sum" if reduction == "sum" else "mean")

    return loss_fn


def _same(value: float, seen: float) -> bool:
    """Equal, or divided by the number of accumulated batches."""
    if value == 0 or seen == 0:
        return value == seen
    parts = value / seen
    return 0.9 < parts < 1025 and abs(parts - round(parts)) < 1e-3 * parts


def _cloned(value: Any) -> Any:
    return mapped(value, lambda part: part.detach().clone() if isinstance(part, Tensor) else part)
