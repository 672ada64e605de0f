"""The loss of a fresh copy, from the same random state, with something in it moved: does it depend on that at all?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish.torch.probe.scopes import clean, tensors_in
from unvanish.torch.rehearsal.copies import Working, preserved_randomness, working_copy
from unvanish.torch.rehearsal.objective import Objective, fresh
from unvanish.types import Cut, Parameter


def copy_of(model: nn.Module, optimizer: Optimizer | None, goal: Objective) -> tuple[Working, Objective]:
    """A copy to work on, with the goal that uses it."""
    work = working_copy(model, optimizer, (goal.loss_fn, goal.objective))
    return work, Objective(*work.loss)


@dataclass(frozen=True, slots=True)
class Moved:
    """The program, of which something is moved on a copy."""

    model: nn.Module
    optimizer: Optimizer
    goal: Objective
    batch: Any
    parameters: tuple[Parameter, ...]

    def loss(self, cut: Cut | None) -> float:
        """The loss where what lies behind this cut is another: weights out of the graph, or what a call put out."""
        work, trained = copy_of(self.model, self.optimizer, self.goal)
        with preserved_randomness(), torch.no_grad():
            if cut is not None and not cut.calls:
                _change(work.model, self._lost(cut.behind))
            with _nudged(work.model, cut) if cut is not None and cut.calls else nullcontext():
                return float(trained.run(work.model, fresh(self.batch)))

    def _lost(self, modules: tuple[str, ...]) -> set[str]:
        """Names of the trainable weights of these modules that the graph does not reach."""
        lost = (p.name for p in self.parameters if p.requires_grad and not p.reached)
        return {name for name in lost if name.rpartition(".")[0] in modules}


def _change(model: nn.Module, names: set[str]) -> None:
    """Add noise of their own size to these parameters."""
    source = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if clean(name) in names and parameter.numel():
            parameter.add_(_noise(parameter, source))


@contextmanager
def _nudged(model: nn.Module, cut: Cut) -> Iterator[None]:
    """Add noise to what call number ``cut.calls`` of its module puts out."""
    source, count = torch.Generator().manual_seed(0), itertools.count(1)

    def nudge(_module: nn.Module, _args: Any, output: Any) -> None:
        if next(count) == cut.calls:
            for tensor in filter(torch.is_floating_point, tensors_in(output)):
                tensor.add_(_noise(tensor, source))

    named = {clean(name): part for name, part in model.named_modules()}
    handle = named[cut.where].register_forward_hook(nudge)
    try:
        yield
    finally:
        handle.remove()


def _noise(tensor: Tensor, source: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=source).to(tensor) * (1 + tensor.abs().max())
