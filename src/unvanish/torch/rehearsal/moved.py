"""The loss of a fresh copy, from the same random state, with something in it moved: does it depend on that at all?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from unvanish.torch.probe.scopes import clean, tensors_in
from unvanish.torch.rehearsal.copies import Working, preserved_randomness, working_copy
from unvanish.torch.rehearsal.objective import Objective, fresh
from unvanish.types import Parameter


def copy_of(model: nn.Module, optimizer: Optimizer | None, goal: Objective) -> tuple[Working, Objective]:
    """A copy to work on, with the goal that uses it."""
    work = working_copy(model, optimizer, (goal.loss_fn, goal.objective))
    return work, Objective(*work.loss)


def _lost(parameters: Iterable[Parameter], modules: tuple[str, ...]) -> set[str]:
    """Names of the trainable weights of these modules that the graph does not reach."""
    return {p.name for p in parameters if p.requires_grad and not p.reached and p.name.rpartition(".")[0] in modules}


def loss_with_others(
    parameters: Iterable[Parameter],
    modules: tuple[str, ...],
    model: nn.Module,
    optimizer: Optimizer,
    goal: Objective,
    batch: Any,
) -> float:
    """The loss where the weights of these modules that are out of the graph are others."""
    names = _lost(parameters, modules)
    work, trained = copy_of(model, optimizer, goal)
    source = torch.Generator().manual_seed(0)
    with preserved_randomness(), torch.no_grad():
        for name, parameter in work.model.named_parameters():
            if clean(name) in names and parameter.numel():
                noise = torch.randn(parameter.shape, generator=source).to(parameter)
                parameter.add_(noise * (1 + parameter.abs().max()))
        return float(trained.run(work.model, fresh(batch)))


def loss_nudged(module: str, call: int, model: nn.Module, optimizer: Optimizer, goal: Objective, batch: Any) -> float:
    """The loss where what this call of a module puts out is another; calls are counted from 1, 0 is none."""
    work, trained = copy_of(model, optimizer, goal)
    source, count = torch.Generator().manual_seed(0), itertools.count(1)

    def nudge(_module: nn.Module, _args: Any, output: Any) -> None:
        if next(count) == call:
            for tensor in filter(torch.is_floating_point, tensors_in(output)):
                tensor.add_(torch.randn(tensor.shape, generator=source).to(tensor) * (1 + tensor.abs().max()))

    named = {clean(name): part for name, part in work.model.named_modules()}
    with preserved_randomness(), torch.no_grad():
        handle = named[module].register_forward_hook(nudge)
        try:
            return float(trained.run(work.model, fresh(batch)))
        finally:
            handle.remove()
