"""Do rows that the loss takes for separate samples read one another, where nobody can have meant it?

An LSTM or attention with ``batch_first=False`` that is given (batch, time, features) walks along the batch, and a
reshape where a transpose is meant deals the states of one sample to others.  Nothing fails, the network even learns its
batches; the test is to put another input into one row and to see whether other rows change.  Samples that read one
another by anything else (a graph's edges, scores of all pairs, statistics of the batch) do so on purpose.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.probe.naming import names_of
from unvanish.torch.probe.scopes import tensors_in
from unvanish.torch.rehearsal.copies import working_copy
from unvanish.torch.rehearsal.objective import Objective, call, split

_ALONG_AN_AXIS = (nn.RNNBase, nn.MultiheadAttention)  # which of two axes they walk along is a setting
_FEWEST = 3  # samples
_CHANGED = 1e-5  # of a row's size; equal rows of equal batches come out bitwise equal
_SAME = 1e-9  # relative: sums of the same numbers in another order
_Whole = tuple[int, float, float]


@dataclass(frozen=True, slots=True)
class _Call:
    """What a module was given and what it put out: sums of each row (None without rows), and of all."""

    name: str
    walks: bool
    many: bool  # a batch of sequences, not one sequence of samples that somebody made on purpose
    given: tuple[Tensor | None, ...]
    made: tuple[Tensor | None, ...]
    given_whole: tuple[_Whole, ...]
    made_whole: tuple[_Whole, ...]


def mixed_at(model: nn.Module, goal: Objective, batch: Any) -> str | None:
    """The first module that walks along the batch, or is given states that were dealt to other samples.

    None where there is none, and where it cannot be told: no single target for each sample, no batch of sequences, no
    module that walks along an axis, a forward pass that is not the same twice.

    Args:
        model: only a copy of it runs, in evaluation mode.
        goal: how a batch becomes a loss.
        batch: one (input, target).
    """
    if goal.loss_fn is None or not any(isinstance(module, _ALONG_AN_AXIS) for module in model.modules()):
        return None
    inputs, target = split(batch)
    rows = _samples(target)
    if rows is None or not _sequences(inputs, rows):
        return None
    copied = working_copy(model, None, ()).model.eval()
    try:
        first, plain, moved = (_run(copied, x, rows) for x in (inputs, inputs, _first_replaced(inputs, rows)))
    except Exception:  # the program may refuse what we made of its batch, such as lengths out of order
        return None
    if _mixing(first, plain) is not None:
        return None  # what changes by itself, as with a state that is kept from batch to batch, tells nothing
    found = _mixing(plain, moved)
    return None if found is None or not _unmeant(plain[found], plain[:found]) else plain[found].name


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
    return first.shape[1] not in (1, rows) and bool((first[0] != first[-1]).any())


def _first_replaced(value: Any, rows: int) -> Any:
    """The same inputs with the last sample's in place of the first one's, where a recurrent layer begins."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != rows:
            return value
        return torch.cat([value[-1:], value[1:]])
    if isinstance(value, dict):
        return {key: _first_replaced(part, rows) for key, part in value.items()}
    return type(value)(_first_replaced(part, rows) for part in value) if isinstance(value, tuple | list) else value


def _mixing(before: list[_Call], after: list[_Call]) -> int | None:
    """The first call in which a row changed that was given the same."""
    for index, (one, other) in enumerate(zip(before, after, strict=False)):
        pairs = zip((*one.given, *one.made), (*other.given, *other.made), strict=False)
        if any(a is not None and b is not None and _others_changed(a, b) for a, b in pairs):
            return index
    return None


def _others_changed(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() > _CHANGED * one[:, 1:])[1:].any())


def _unmeant(found: _Call, earlier: list[_Call]) -> bool:
    """It walks along the batch itself, or is given what one that walks put out, with nothing done but a reshape."""
    if found.walks and found.many:
        return True
    states = [whole for one in earlier if one.walks for whole in one.made_whole]
    return any(_equal(given, state) for given, state in itertools.product(found.given_whole, states))


def _equal(one: _Whole, other: _Whole) -> bool:
    return all(math.isclose(a, b, rel_tol=_SAME) for a, b in zip(one, other, strict=True))


def _run(model: nn.Module, inputs: Any, rows: int) -> list[_Call]:
    """All calls of leaf modules and of those that walk along an axis, in order."""
    seen: list[_Call] = []
    torch.manual_seed(0)  # noise in a forward pass is the same each time
    with _watched(model, seen, rows):
        call(model, inputs)
    return seen


@contextmanager
def _watched(model: nn.Module, seen: list[_Call], rows: int) -> Iterator[None]:
    names = names_of(model).modules

    def note(module: nn.Module, args: Any, output: Any) -> None:
        walks = isinstance(module, _ALONG_AN_AXIS)
        if walks or not module._modules:
            given, made = [t for t in tensors_in(args) if _counts(t)], [t for t in tensors_in(output) if _counts(t)]
            states = [*made, *(t[-2:] for t in made)] if walks else []  # or the last layer's
            seen.append(
                _Call(
                    names[id(module)],
                    walks,
                    bool(given) and given[0].ndim > 2 and given[0].shape[1] > 1,
                    tuple(_sums(t) if len(t) == rows else None for t in given),
                    tuple(_sums(t) if len(t) == rows else None for t in made),
                    tuple(map(_whole, given)),
                    tuple(map(_whole, states)),
                )
            )

    handles = [module.register_forward_hook(note) for module in model.modules() if id(module) in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counts(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() > 0


def _sums(tensor: Tensor) -> Tensor:
    """(rows, 2): the sum of each row, and of its absolute values."""
    flat = tensor.detach().flatten(1)
    sizes = torch.linalg.vector_norm(flat, ord=1, dim=1, dtype=torch.float64)
    return torch.stack([flat.sum(1, dtype=torch.float64), sizes], 1)


def _whole(tensor: Tensor) -> _Whole:
    """What stays the same when its numbers are arranged in another way."""
    flat = tensor.detach().double().flatten()
    return flat.numel(), float(flat.sum()), float(torch.dot(flat, flat))
