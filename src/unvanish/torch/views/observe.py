"""Probe one batch of a working copy: everything a single forward and backward pass can tell."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish.torch.probe.activations import Units
from unvanish.torch.probe.graph import Graph
from unvanish.torch.probe.naming import Names, names_of
from unvanish.torch.probe.probe import Probe
from unvanish.torch.probe.scopes import clean, tensors_in
from unvanish.torch.rehearsal.objective import Objective, batch_size, main_tensor
from unvanish.torch.views.cuts import find_cuts
from unvanish.torch.views.inputs import view_inputs
from unvanish.torch.views.losses import view_loss
from unvanish.torch.views.parameters import view_parameters
from unvanish.torch.views.strangers import nobodys
from unvanish.torch.views.terms import find_term
from unvanish.torch.views.time_cuts import find_time_cuts
from unvanish.types import Cut, InputView, LossView, Parameter, Site, TimeProfile


@dataclass(frozen=True, slots=True)
class Observation:
    """What one probed batch told."""

    sites: tuple[Site, ...]
    units: dict[int, Units]
    parameters: tuple[Parameter, ...]
    loss: LossView
    times: tuple[TimeProfile, ...]
    inputs: tuple[InputView, ...]
    cuts: tuple[Cut, ...]
    batch_size: int | None
    strangers: tuple[nn.Parameter, ...] = ()


def observe(model: nn.Module, optimizer: Optimizer | None, objective: Objective, batch: Any) -> Observation:
    """Run one probed forward and backward pass of ``model``; gradients are left in ``.grad``."""
    names = names_of(model)
    inputs = objective.inputs(batch)
    size = batch_size(inputs)
    probe = Probe(names, size, tuple(tensors_in(inputs)))
    with probe.watching():
        loss = objective.run(model, batch)
    return finish(probe, loss, model, optimizer, names, inputs, objective.target)


@dataclass(frozen=True, slots=True)
class Before:
    """What is read before the backward pass frees the graph."""

    graph: Graph | None
    loss: LossView
    cuts: tuple[Cut, ...]
    inputs: tuple[InputView, ...]


def before_backward(probe: Probe, loss: Tensor, inputs: Any, target: Tensor | None) -> Before:
    """Hook the graph of ``loss`` and describe what it ends in; a backward pass, ours or the user's, comes next."""
    output = main_tensor(probe.scopes.output)
    graph = probe.attach(loss) if probe.connected(loss) else None
    view = view_loss(loss, graph, output, target)
    term = find_term(graph)
    if term is not None:
        share = None if term.value is None or not view.value else abs(term.value / view.value)
        view = replace(view, term=term.kind, term_level=term.level, term_share=share)
    cuts = find_cuts(probe.scopes, graph) + find_time_cuts(probe.scopes, graph)
    return Before(graph, view, cuts, view_inputs(inputs, graph))


def finish(
    probe: Probe,
    loss: Tensor,
    model: nn.Module,
    optimizer: Optimizer | None,
    names: Names,
    inputs: Any,
    target: Tensor | None,
) -> Observation:
    """The second half of a probe: graph, backward pass, and the description of what was seen."""
    before = before_backward(probe, loss, inputs, target)
    graph = before.graph
    if graph is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user's own backward says it again
            torch.autograd.backward(loss)
    named = {clean(name): p for name, p in model.named_parameters()}
    parameters = view_parameters(named, graph, probe.scopes, names, optimizer)
    strangers = nobodys(graph.leaves, probe.scopes.calls, names, optimizer) if graph is not None else ()
    sites, units = probe.sites() if graph is not None else ((), {})
    times = probe.times.profiles(sites)
    size = probe.scopes.batch_size
    return Observation(sites, units, parameters, before.loss, times, before.inputs, before.cuts, size, strangers)
