"""The PyTorch side of a diagnosis: model, loss, batches and optimizer in; one Flow of plain numbers out."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from unvanish import reading
from unvanish.torch.probe.probe import merge_units
from unvanish.torch.probe.scopes import tensors_in
from unvanish.torch.rehearsal.copies import (
    grads_aside,
    preserved_generators,
    preserved_randomness,
    warming_up,
)
from unvanish.torch.rehearsal.experiments import experiments, format_experiments
from unvanish.torch.rehearsal.hooks import hooked
from unvanish.torch.rehearsal.moved import Moved, copy_of
from unvanish.torch.rehearsal.objective import Objective, check_program, fresh
from unvanish.torch.rehearsal.rehearse import find_birth, rehearse
from unvanish.torch.rehearsal.settings import view_optimizer
from unvanish.torch.rehearsal.tampered import lost_histories
from unvanish.torch.rehearsal.together import together
from unvanish.torch.views.cuts import confirmed, suspects
from unvanish.torch.views.mixing import mixed_at
from unvanish.torch.views.observe import Observation, observe
from unvanish.torch.views.order import classes_seen
from unvanish.torch.views.padding import only_padding
from unvanish.torch.views.parameters import view_newborn
from unvanish.torch.views.rank import stable_rank
from unvanish.types import Flow, OptimizerView, Site, TimeProfile

_MOST_BATCHES = 16
_SCHEDULED = ("the schedule of the learning rate, which begins low: steps were made at its full rate",)
_HOOK = "a hook at the optimizer's steps, which refers to what cannot be copied: the learning rate is not judged"
_DEEP = 10  # weight layers in a row from which directions may collapse


def flow_of(
    model: nn.Module,
    loss_fn: Callable[..., Any] | None,
    batches: Iterable[Any],
    optimizers: Optimizer | Sequence[Optimizer] | None,
    objective: Callable[..., Any] | None,
    steps: int,
) -> Flow:
    """Probe two batches, rehearse, experiment; everything on copies, with all random streams put back."""
    check_program(model, loss_fn, objective, optimizers)
    optimizer = together(optimizers) if isinstance(optimizers, Sequence) else optimizers
    _check_trainable(model)
    with preserved_randomness(), grads_aside(model), torch.inference_mode(False), torch.enable_grad():
        held = _take(batches, max(2, min(steps, _MOST_BATCHES)))
        goal = Objective(loss_fn, objective)
        given = optimizer is not None
        if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
            model, optimizer, goal = _materialized(model, optimizer, goal, held[0])
        if optimizer is None:
            optimizer = torch.optim.Adam(
                [p for p in model.parameters() if p.requires_grad] or [torch.zeros(1)], lr=1e-3
            )
        first, sites = _probe(model, optimizer, goal, held)
        if not first.parameters:
            raise ValueError(
                f"The model, a {type(model).__name__}, has no parameters, so there is nothing to train. "
                "A diagnosis needs a model with weights. Pass the network that your optimizer trains."
            )
        parameters = tuple(p if given else replace(p, in_optimizer=None) for p in first.parameters)

        moved = Moved(model, optimizer, goal, held[0], parameters)
        flow = Flow(
            sites=sites,
            parameters=parameters,
            loss=first.loss,
            times=first.times,
            inputs=first.inputs,
            optimizer=_unscheduled(optimizer, view_optimizer(optimizer, given)),
            cuts=confirmed(suspects(first.cuts, parameters), moved.loss),
            batch_size=first.batch_size,
            unobserved=(*unobserved(sites, first.times), *_SCHEDULED[: bool(warming_up(optimizer))]),
        )
        if reading.plain_depth(flow) >= _DEEP:
            work, trained = copy_of(model, optimizer, goal)
            flow = replace(flow, stable_rank=stable_rank(work.model, trained, fresh(held[0])))
        if not first.loss.requires_grad:
            return flow
        flow = replace(flow, mixed=mixed_at(model, goal, fresh(held[0])), classes_seen=classes_seen(held))
        flow = replace(
            flow, cuts=(*flow.cuts, *lost_histories(model, goal, held[0]), *only_padding(model, goal, held[0]))
        )
        return _train(flow, model, optimizer, goal, held, steps)


def _check_trainable(model: nn.Module) -> None:
    """A model whose layers sit in a plain list has no parameters either, but more than that to be told."""
    held = list(model.parameters())
    if held and not any(p.requires_grad for p in held):
        raise ValueError(
            f"All {len(held)} parameters of the model are frozen, so there is nothing to train. "
            "A diagnosis needs at least one that requires a gradient. "
            "Call model.requires_grad_(True), or unfreeze the layers that are meant to train."
        )


def _take(batches: Iterable[Any], count: int) -> list[Any]:
    if not isinstance(batches, Iterable):
        raise ValueError(
            f"batches is a {type(batches).__name__}, which does not give batch after batch. "
            "It must be an iterable of (input, target) batches. "
            "Pass [(x, y), ...], or DataLoader(dataset, batch_size=64)."
        )
    with preserved_generators(batches):
        if (source := iter(batches)) is batches:
            warnings.warn(
                f"batches is a one-shot iterator: up to {count} of its batches are used up by the diagnosis. "
                "Pass a list or a DataLoader to keep them.",
                stacklevel=5,
            )
        held = list(itertools.islice(source, count))
    if not held:
        raise ValueError(
            "batches is empty. A diagnosis needs at least one batch of (input, target). "
            "Pass a list of batches or a DataLoader; a generator that was used before yields nothing."
        )
    for number, batch in enumerate(held):
        lengths = [len(tensor) for tensor in tensors_in(batch) if tensor.ndim]
        if lengths and not any(lengths):
            raise ValueError(
                f"Batch {number} holds no samples: all its tensors have length 0. Expected one sample or more in each. "
                "Look at what selects them, as a filter or a mask, and leave empty batches out."
            )
    return held


def _materialized(
    model: nn.Module, optimizer: Optimizer | None, goal: Objective, batch: Any
) -> tuple[nn.Module, Optimizer | None, Objective]:
    """Lazy layers get their shapes from a first batch: on a copy, which stands for the user's model from here on."""
    work, filled = copy_of(model, optimizer, goal)
    with torch.no_grad():
        filled.run(work.model, fresh(batch))
    filled.forget()
    return work.model, work.optimizer, filled


def _probe(
    model: nn.Module, optimizer: Optimizer, goal: Objective, held: Sequence[Any]
) -> tuple[Observation, tuple[Site, ...]]:
    """Step 0 on two batches: a unit counts as dead only if it is dead in both."""
    work, trained = copy_of(model, optimizer, goal)
    first = observe(work.model, work.optimizer, trained, fresh(held[0]))
    _refuse_foreign_graph(model)
    if len(held) < 2 or not first.loss.requires_grad:
        return first, first.sites
    for parameter in work.model.parameters():
        parameter.grad = None
    second = observe(work.model, work.optimizer, trained, fresh(held[1]))
    first = replace(first, parameters=(*first.parameters, *view_newborn(first.strangers, second.strangers)))
    return first, merge_units(first.sites, first.units, second.units)


def _refuse_foreign_graph(model: nn.Module) -> None:
    """A loss that reaches the user's own weights instead of the copy's would train, and measure, the wrong model."""
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise ValueError(
            "The loss depends on the original model's weights, not on the copy's. "
            "Diagnosis runs on a copy, so loss_fn and objective must use the model they are given. "
            "Write objective=lambda model, batch: ... with that `model`, not one from an outer scope."
        )


def _train(flow: Flow, model: nn.Module, optimizer: Optimizer, goal: Objective, held: list[Any], steps: int) -> Flow:
    if not math.isfinite(flow.loss.value) or _gradient_broken(flow):
        work, trained = copy_of(model, optimizer, goal)
        assert work.optimizer is not None, "copied with the model"
        flow = replace(flow, nonfinite=find_birth(work.model, work.optimizer, trained, fresh(held[0]), 0))
        return replace(flow, experiments=format_experiments(model, optimizer, goal, held[0], flow, max(steps, 40)))
    if steps == 0:
        return flow
    work, trained = copy_of(model, optimizer, goal)
    assert work.optimizer is not None, "copied with the model"
    if hooked(optimizer) and not hooked(work.optimizer):
        flow = replace(flow, optimizer=view_optimizer(optimizer, given=False), unobserved=(*flow.unobserved, _HOOK))
    rehearsal = rehearse(work, work.optimizer, trained, held, steps)
    updated = {p.name: p for snapshot in rehearsal.snapshots[:1] for p in snapshot.parameters}
    parameters = tuple(
        replace(p, log_update=updated[p.name].log_update, unchanged=updated[p.name].unchanged)
        if p.name in updated
        else p
        for p in flow.parameters
    )
    flow = replace(
        flow,
        parameters=parameters,
        steps=tuple(rehearsal.steps),
        snapshots=tuple(rehearsal.snapshots[1:]),
        nonfinite=rehearsal.nonfinite,
    )
    return replace(flow, experiments=experiments(model, optimizer, goal, held, flow, max(steps, 40)))


def _gradient_broken(flow: Flow) -> bool:
    return any(p.log_grad is not None and (math.isnan(p.log_grad) or p.log_grad == math.inf) for p in flow.parameters)


def _unscheduled(optimizer: Optimizer, view: OptimizerView) -> OptimizerView:
    """The rates that the rehearsal uses: the full ones where a schedule starts low.

    One that rises from above 0 is a warm-up; what a full rate does without it is not judged.
    """
    rising = warming_up(optimizer)
    full = [id(group) for group in rising]
    groups = [group for group in optimizer.param_groups if group.get("lr") is not None]
    rates = tuple(float(group["initial_lr" if id(group) in full else "lr"]) for group in groups)
    return replace(view, learning_rates=rates, given=view.given and not any(float(g["lr"]) for g in rising))


def _reentrant(site: Site) -> bool:
    """What torch.utils.checkpoint runs again in the backward pass by itself, where no graph shows it."""
    return site.custom and site.op == "checkpoint_function"


def unobserved(sites: tuple[Site, ...], times: tuple[TimeProfile, ...]) -> tuple[str, ...]:
    """Name what was there but could not be measured, so that it is never mistaken for zero."""
    missing = [
        f"{site.label} ({site.op}): dead and saturated units"
        for site in sites
        if site.dead is None and site.shape and (site.kind == "activation" or site.op == "copy_slices")
    ]
    missing += [f"{site.label} ({site.op}): gradient" for site in sites if site.log_grad_out is None]
    missing += [f"{site.label}: all inside, for use_reentrant=False is not set" for site in sites if _reentrant(site)]
    missing += [f"{profile.name} ({profile.op}): gradient over time" for profile in times if not profile.log_grads]
    return tuple(dict.fromkeys(missing))
