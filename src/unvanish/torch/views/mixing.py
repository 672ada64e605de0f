"""Do rows that the loss takes for separate samples read one another?

An LSTM or attention with ``batch_first=False`` that is given (batch, time, features) walks along the batch, and a
reshape where a transpose is meant deals the state of one sample to others.  Nothing fails, the network even learns its
batches; the test is to put another input into one row and to see whether other rows of the output change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unvanish.torch.probe.scopes import tensors_in
from unvanish.torch.rehearsal.objective import Objective, call, main_tensor, split

_ALONG_AN_AXIS = (nn.RNNBase, nn.MultiheadAttention)  # which of two axes they walk along is a setting
_FEWEST = 3  # samples
_CHANGED = 1e-5  # of a row's size; equal rows of equal batches come out bitwise equal
_Seen = list[tuple[str, Tensor]]


def mixed_at(model: nn.Module, goal: Objective, batch: Any, names: dict[int, str]) -> str | None:
    """The first module that gives or is given rows that depend on other samples.

    None where there is none, and where it cannot be told: no single target for each sample, a network without any
    module that walks along an axis, normalisation over the batch.

    Args:
        model: a copy; it is left in evaluation mode.
        goal: how a batch becomes a loss.
        batch: one (input, target).
        names: id(module) -> path.
    """
    if goal.loss_fn is None or not any(isinstance(module, _ALONG_AN_AXIS) for module in model.modules()):
        return None
    inputs, target = split(batch)
    rows = _samples(target)
    if rows is None or not _sequences(inputs, rows) or any(map(_over_the_batch, model.modules())):
        return None
    model.eval()
    try:
        _, first = _run(model, inputs, rows, names)
        before, plain = _run(model, inputs, rows, names)
        after, moved = _run(model, _first_replaced(inputs, rows), rows, names)
    except Exception:  # the program may refuse what we made of its batch, such as lengths out of order
        return None
    if first is None or plain is None or moved is None or _others_changed(first, plain):
        return None  # what changes by itself, as with a state that is kept from batch to batch, tells nothing
    if not _others_changed(plain, moved):
        return None
    pairs = zip(before, after, strict=False)
    return next((name for (name, one), (_, other) in pairs if _others_changed(one, other)), None)


def _samples(target: Any) -> int | None:
    """How many samples there are, where each has one target of its own."""
    known = next(tensors_in(target), None)
    if known is None or known.ndim not in (1, 2) or known.shape[1:] not in ((), (1,)) or len(known) < _FEWEST:
        return None
    return len(known)


def _sequences(inputs: Any, rows: int) -> bool:
    """Is the first input a batch of sequences, and is it clear which of its axes is the batch?"""
    first = next(tensors_in(inputs), None)
    if first is None or first.ndim < (3 if first.is_floating_point() else 2) or first.shape[0] != rows:
        return False
    return first.shape[1] != rows and bool((first[0] != first[-1]).any())


def _over_the_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _first_replaced(value: Any, rows: int) -> Any:
    """The same inputs with the last sample's in place of the first one's, where a recurrent layer begins."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != rows:
            return value
        return torch.cat([value[-1:], value[1:]])
    if isinstance(value, dict):
        return {key: _first_replaced(part, rows) for key, part in value.items()}
    return type(value)(_first_replaced(part, rows) for part in value) if isinstance(value, tuple | list) else value


def _run(model: nn.Module, inputs: Any, rows: int, names: dict[int, str]) -> tuple[_Seen, Tensor | None]:
    """What each row of every module's input and output sums to, in the order of the calls, and so of the output."""
    seen: _Seen = []
    torch.manual_seed(0)  # noise in a forward pass is the same in both
    with _watched(model, seen, rows, names):
        output = main_tensor(call(model, inputs))
    return seen, None if output is None or len(output) != rows else _sums(output)


@contextmanager
def _watched(model: nn.Module, seen: _Seen, rows: int, names: dict[int, str]) -> Iterator[None]:
    def note(module: nn.Module, args: Any, output: Any) -> None:
        if not module._modules or isinstance(module, _ALONG_AN_AXIS):
            known = (t for t in (*tensors_in(args), *tensors_in(output)) if t.is_floating_point() and t.ndim > 1)
            seen.extend((names[id(module)], _sums(t)) for t in known if len(t) == rows)

    handles = [module.register_forward_hook(note) for module in model.modules() if id(module) in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sums(tensor: Tensor) -> Tensor:
    """(rows, 2): the sum of each row, and of its absolute values."""
    flat = tensor.detach().double().flatten(1)
    return torch.stack([flat.sum(1), flat.abs().sum(1)], 1)


def _others_changed(one: Tensor, other: Tensor) -> bool:
    """Did a row change that was given the same?"""
    return bool(((one - other).abs() > _CHANGED * one[:, 1:])[1:].any())
