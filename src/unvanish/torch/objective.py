"""One way to run a batch through a model to a scalar loss, whatever form the user's program has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.scopes import tensors_in


@dataclass(slots=True)
class Objective:
    """``run(model, batch) -> loss``; keeps the last output and target for the loss's description."""

    loss_fn: Callable[..., Any] | None
    objective: Callable[..., Any] | None
    output: Tensor | None = None
    target: Tensor | None = None

    def run(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar loss of one batch."""
        if self.objective is not None:
            return scalar(self.objective(model, batch))
        if self.loss_fn is None:
            return scalar(_own_loss(call(model, batch)))
        inputs, target = split(batch)
        output = call(model, inputs)
        self.output = main_tensor(output)
        self.target = next(tensors_in(target), None)
        return scalar(self.loss_fn(output, target))

    def inputs(self, batch: Any) -> Any:
        """What goes into the network, as far as it can be told from the batch."""
        return split(batch)[0] if self.loss_fn is not None else batch

    def forget(self) -> None:
        """Let go of tensors that hold a graph alive."""
        self.output = self.target = None


def split(batch: Any) -> tuple[Any, Any]:
    """(input, target) of a batch.

    Raises:
        ValueError: if the batch has no such two parts.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, tuple | list) and len(batch) > 2:
        return tuple(batch[:-1]), batch[-1]
    raise ValueError(
        f"A batch is a {type(batch).__name__}, so loss_fn cannot be given its target. "
        "With loss_fn each batch must be a pair (input, target). "
        "Pass objective=lambda model, batch: loss for anything else."
    )


def call(model: nn.Module, inputs: Any) -> Any:
    """``model(x)``, ``model(*xs)`` or ``model(**xs)``, by the form of the inputs."""
    if isinstance(inputs, dict) or type(inputs).__name__ == "BatchEncoding":
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def main_tensor(output: Any) -> Tensor | None:
    """The output a loss would read: ``.logits`` where there is one, else the first floating tensor."""
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    return next((t for t in tensors_in(output) if t.is_floating_point()), None)


def _own_loss(output: Any) -> Any:
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if loss is None:
        raise ValueError(
            f"The model returned a {type(output).__name__} without a loss. "
            "Without loss_fn and objective the model itself must return an object with a .loss. "
            "Pass loss_fn(output, target) or objective(model, batch)."
        )
    return loss


def scalar(loss: Any) -> Tensor:
    """The loss as a 0-d tensor.

    Raises:
        ValueError: if it is no tensor, or has more than one element.
    """
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"The loss is a {type(loss).__name__}, not a tensor, so there is no graph to follow. "
            "loss_fn or objective must return a scalar torch.Tensor. "
            "Return the tensor itself: .item(), float() and .numpy() cut the graph."
        )
    if loss.numel() != 1:
        raise ValueError(
            f"The loss has shape {tuple(loss.shape)}. backward() needs a scalar. "
            "Reduce it, for example with .mean(), or drop reduction='none'."
        )
    return loss if loss.ndim == 0 else loss.reshape(())


def batch_size(inputs: Any) -> int | None:
    """Length of the first axis of the first tensor."""
    first = next(tensors_in(inputs), None)
    return int(first.shape[0]) if isinstance(first, torch.Tensor) and first.ndim else None
