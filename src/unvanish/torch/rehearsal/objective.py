"""One way to run a batch through a model to a scalar loss, whatever form the user's program has."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer

from unvanish.torch.probe.scopes import tensors_in
from unvanish.torch.rehearsal.together import together

_Shapes = tuple[tuple[int, ...], ...]


@contextmanager
def _users_code(shapes: _Shapes, worked: _Shapes | None) -> Iterator[None]:
    """An error of the user's own program stays what it is, and says where it comes from."""
    try:
        yield
    except Exception as error:
        if worked is not None and worked != shapes:
            error.add_note(
                f"This batch holds tensors of shape {_listed(shapes)}; the program worked on one of {_listed(worked)}. "
                "Batches may differ in length only where the model takes it. Pad or group them by shape."
            )
        error.add_note(
            "This error comes from your program, run by unvanish on a copy of your model. "
            "Expected: a forward pass and a loss that work on this batch as in your training loop. "
            "Check that model, loss_fn and batches belong together and are on one device."
        )
        raise


@dataclass(slots=True)
class Objective:
    """``run(model, batch) -> loss``; keeps the last output and target for the loss's description.

    ``worked``: the shapes of the last batch that the program took.
    """

    loss_fn: Callable[..., Any] | None
    objective: Callable[..., Any] | None
    output: Tensor | None = None
    target: Tensor | None = None
    worked: _Shapes | None = None

    def run(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar loss of one batch."""
        shapes = tuple(tuple(tensor.shape) for tensor in tensors_in(batch))
        parts = split(batch) if self.loss_fn is not None else (labelled(model, batch), None)
        with _users_code(shapes, self.worked):
            value = self.objective(model, batch) if self.objective is not None else self._output(model, *parts)
        self.worked = shapes
        return scalar(_own_loss(value) if self.loss_fn is None and self.objective is None else value)

    def _output(self, model: nn.Module, inputs: Any, target: Any) -> Any:
        """What the loss function makes of the model's output; that output itself where there is none."""
        output = call(model, inputs)
        if self.loss_fn is None:
            return output
        self.output = main_tensor(output)
        self.target = next(tensors_in(target), None)
        return self.loss_fn(output, target)

    def inputs(self, batch: Any) -> Any:
        """What goes into the network, as far as it can be told from the batch."""
        if self.loss_fn is not None:
            return split(batch)[0]
        named = batch[0] if self.objective is None and _keyed(batch) else batch
        return {key: value for key, value in named.items() if key != "labels"} if _mapping(named) else named

    def forget(self) -> None:
        """Let go of tensors that hold a graph alive."""
        self.output = self.target = None


def fresh(batch: Any) -> Any:
    """A copy of a batch, cut from any graph, because programs may change their input in place.

    What cannot be copied comes back as it is.
    """
    bound = (tensor for tensor in tensors_in(batch) if tensor.grad_fn is not None)
    try:
        return copy.deepcopy(batch, {id(tensor): tensor.detach().clone() for tensor in bound})
    except Exception:  # anything may be in a batch
        return batch


def _listed(shapes: _Shapes) -> str:
    return ", ".join(map(str, shapes)) or "none"


def check_program(model: nn.Module, loss_fn: Any, objective: Any, optimizer: Any) -> None:
    """Refuse what cannot be a program.

    Raises:
        ValueError: says what was given, what is expected, and what to pass.
    """
    for name, value in (("loss_fn", loss_fn), ("objective", objective)):
        if value is not None and (not callable(value) or isinstance(value, type)):
            raise ValueError(
                f"{name} is {_shown(value)}, which cannot be called with a model's output. "
                "It must be a function or a loss module. "
                "Pass for example nn.CrossEntropyLoss() (with the brackets) or torch.nn.functional.cross_entropy."
            )
    if loss_fn is not None and objective is not None:
        raise ValueError(
            "Both loss_fn and objective were given. One of them says how a batch becomes a loss. "
            "Pass loss_fn(output, target), or objective(model, batch) for anything else."
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(
            "The model is compiled to TorchScript, whose copies still use the original's weights. "
            "A diagnosis needs a model that can be copied. Pass the nn.Module it was made from."
        )
    if any(p.is_meta for p in model.parameters()):
        raise ValueError(
            "The model has weights on the meta device, which hold no numbers. A diagnosis runs the model. "
            "Call model.to_empty(device='cpu') and initialise it, or build it on a real device."
        )
    if isinstance(optimizer, list | tuple):
        _check_optimizers(optimizer)
    elif optimizer is not None:
        _check_optimizer(optimizer)


def _check_optimizers(optimizers: Sequence[Any]) -> None:
    for part in optimizers:
        _check_optimizer(part)
    if together(optimizers) is None:
        raise ValueError(
            f"optimizer is a list of {len(optimizers)} that cannot step one after another. Expected optimizers of "
            "different weights, none of them LBFGS, which asks for the loss again. Pass each with its own diagnosis."
        )


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"optimizer is {_shown(optimizer)}. It must be a torch.optim.Optimizer made with this model's parameters. "
            "Pass the optimizer itself (or a list of them), not its class, a scheduler or a wrapper."
        )


def _shown(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


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
        "With loss_fn each batch must be a pair (input, target), and batches a list of such pairs: [(x, y), ...]. "
        "Pass objective=lambda model, batch: loss for anything else."
    )


def call(model: nn.Module, inputs: Any) -> Any:
    """``model(x)``, ``model(*xs)`` or ``model(**xs)``, by the form of the inputs.

    A dict of which ``forward`` knows no name is the one thing that it takes.
    """
    if _mapping(inputs):
        known = _parameters(model)
        return model(**inputs) if known is None or not inputs or known & inputs.keys() else model(inputs)
    several = isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence)
    return model(*inputs) if several else model(inputs)


def inputs_of(model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """What ``call`` makes this very call of; None for no arguments, or for some whose names cannot be told."""
    if not args:
        return keywords or None
    if not keywords:
        return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else args
    try:
        signature = inspect.signature(model.forward)
        named = signature.bind_partial(*args).arguments
    except (TypeError, ValueError):
        return None
    plain = all(signature.parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for name in named)
    return {**named, **keywords} if plain else None


def labelled(model: nn.Module, batch: Any) -> Any:
    """What a model that makes its own loss is called with: of ({names: inputs}, target), the inputs with their labels.

    The target is passed as ``labels`` where the model takes these and the inputs do not hold them.
    """
    known = _parameters(model)
    if not _keyed(batch) or not (known is None or known & batch[0].keys()):
        return batch
    inputs, target = batch
    missing = "labels" not in inputs and (known is None or "labels" in known)
    return {**inputs, "labels": target} if missing else inputs


def _keyed(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2 and _mapping(batch[0])


def _mapping(inputs: Any) -> bool:
    return isinstance(inputs, dict) or type(inputs).__name__ == "BatchEncoding"


def _parameters(model: nn.Module) -> set[str] | None:
    """Names that ``forward`` takes; None where it takes any."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


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
    if loss.is_complex():
        raise ValueError(
            f"The loss is complex ({loss.dtype}). backward() needs a real scalar. Return its .abs() or .real."
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
