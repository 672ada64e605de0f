"""Work on copies: the user's model, optimizer, random streams and gradients stay bit-identical."""

from __future__ import annotations

import copy
import itertools
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from unvanish.torch.rehearsal.hooks import carry, hooked
from unvanish.torch.rehearsal.portable import follow, portable
from unvanish.torch.rehearsal.together import parts_of
from unvanish.torch.views.strangers import made_of, tensors_at


class Working(NamedTuple):
    """Copies that belong together: the optimizer's parameters are the copied model's."""

    model: nn.Module
    optimizer: Optimizer | None
    loss: tuple[Any, ...]


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Put Python's, NumPy's and PyTorch's random streams (all devices) back as they were."""
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def preserved_generators(batches: Any) -> Iterator[None]:
    """Put the random generators of a DataLoader and of its sampler back as they were."""
    holders = (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    found = {id(g): g for g in (getattr(holder, "generator", None) for holder in holders)}
    states = [(g, g.get_state()) for g in found.values() if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


@contextmanager
def grads_aside(model: nn.Module) -> Iterator[None]:
    """Take the gradients off the user's weights, and put them back: one that arrives meanwhile came from their use."""
    kept = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept.items():
            parameter.grad = gradient


def working_copy(model: nn.Module, optimizer: Optimizer | None, loss: tuple[Any, ...]) -> Working:
    """Deep copies of model, optimizer and losses (modules, functions, callable objects) that refer to one another.

    Where a schedule starts below its full learning rate, the copy has that: nobody steps the schedule there.

    Raises:
        ValueError: where Python cannot copy one of them.
    """
    plain = getattr(model, "_orig_mod", model)  # torch.compile's wrapper: the copy runs eager
    memo: dict[int, Any] = {}
    try:
        _cut_off(plain, memo)
        _copy_empty(plain, memo)
        copied = memo[id(model)] = copy.deepcopy(plain, memo)
        stepper = copy.deepcopy(optimizer, memo)
        pairs = list(zip(parts_of(optimizer), parts_of(stepper), strict=True))
        for part, twin in pairs:
            _complete(part, twin, memo)
        follow(plain, memo)
        for part, twin in pairs:
            carry(part, twin, memo)
        losses = tuple(portable(part, memo) for part in loss)
    except Exception as error:
        raise ValueError(
            f"unvanish could not copy the model, its optimizer or its loss: {type(error).__name__}: {error}. "
            "Diagnosis works on deep copies so that nothing of yours changes; everything they hold must be copyable. "
            "Take what is not (open files, locks, generators) out of them, or use `unvanish run`, which copies nothing."
        ) from error
    for parameter in copied.parameters():
        parameter.grad = None
    for group in warming_up(stepper):
        group["lr"] = group["initial_lr"]
    return Working(copied, stepper, losses)


def _cut_off(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copy the results of ops that modules keep, which Python cannot: weight_norm's weight, an LSTM's last state.

    A weight made of a Parameter that nobody has stays one.
    """
    own: set[int] = set()
    for module in model.modules():
        kept = [(name, value) for name, value in vars(module).items() if name != "_modules" and _may_hold(value)]
        for tensor, _ in itertools.chain.from_iterable(itertools.starmap(tensors_at, kept)):
            if tensor.grad_fn is not None:
                own = own or {id(p) for p in model.parameters()}
                weight = not own.issuperset(map(id, made_of(tensor)))
                memo[id(tensor)] = tensor.detach().clone().requires_grad_(weight)


def _may_hold(value: Any) -> bool:
    """Can there be tensors in it? Most of what a module keeps are numbers, and empty dictionaries of hooks."""
    return bool(value) if isinstance(value, dict | list | tuple) else isinstance(value, torch.Tensor | nn.Module)


def _copy_empty(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copy the empty dictionaries of hooks, nine in each module: Python takes half of all its time for them."""
    for module in model.modules():
        for value in vars(module).values():
            if type(value) is OrderedDict and not value:
                memo[id(value)] = OrderedDict()


def warming_up(optimizer: Optimizer | None) -> list[dict[str, Any]]:
    """The groups whose rate a schedule holds low before the first step; it leaves the full rate beside it.

    An optimizer that has stepped (it has a state) stands at the end of its schedule, and nobody will raise the rate.
    Where its steps carry a hook, that may be the schedule: it raises the rate itself.
    """
    fresh = [part for part in parts_of(optimizer) if not any(part.state.values()) and not hooked(part)]
    groups = [group for part in fresh for group in part.param_groups]
    scheduled = [group for group in groups if "initial_lr" in group and group.get("lr") is not None]
    return [group for group in scheduled if float(group["lr"]) < float(group["initial_lr"])]


def _complete(optimizer: Optimizer, copied: Optimizer, memo: dict[int, Any]) -> None:
    """Optimizers copy only their groups and state; give the copy what else they keep (LBFGS its list of weights)."""
    for name, value in vars(optimizer).items():
        if name not in vars(copied) and not callable(value) and not name.endswith("_hooks"):
            setattr(copied, name, copy.deepcopy(value, memo))
