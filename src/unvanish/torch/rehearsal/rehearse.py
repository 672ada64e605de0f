"""Train a copy for a few dozen steps as the user would, and look: much of what goes wrong shows only then."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from unvanish.torch.probe.naming import names_of
from unvanish.torch.probe.norms import dense, norms
from unvanish.torch.probe.scopes import clean
from unvanish.torch.rehearsal.copies import Working
from unvanish.torch.rehearsal.objective import Objective, fresh
from unvanish.torch.views.births import find_backward_birth, find_bad_data, find_bad_source, find_forward_birth
from unvanish.torch.views.observe import observe
from unvanish.torch.views.parameters import Updates, with_updates
from unvanish.types import NonFinite, Parameter, Snapshot, Step

_LOOKS = (0, 1, 5, 10, 20)  # steps probed in full, and the last


@dataclass(slots=True)
class Rehearsal:
    """What the copy went through."""

    steps: list[Step] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    nonfinite: NonFinite | None = None


def rehearse(
    work: Working, optimizer: Optimizer, objective: Objective, batches: Sequence[Any], steps: int
) -> Rehearsal:
    """Train ``work.model`` (a copy) for ``steps`` optimizer steps, cycling over the batches."""
    rehearsal = Rehearsal()
    named = {clean(name): p for name, p in work.model.named_parameters()}
    for index in range(steps):
        batch = fresh(batches[index % len(batches)])
        looking = index in _LOOKS or index == steps - 1
        state = torch.get_rng_state()
        optimizer.zero_grad()
        work.model.zero_grad()  # too: what the optimizer does not hold would pile up
        parameters: tuple[Parameter, ...] = ()
        if looking:
            seen = observe(work.model, optimizer, objective, batch)
            loss, parameters = seen.loss.value, seen.parameters
            rehearsal.snapshots.append(Snapshot(index, seen.sites, parameters))
        else:
            loss = _backward(work.model, objective, batch)
        log_grad = total_log_norm([p.grad for p in named.values() if p.grad is not None])
        if not (math.isfinite(loss) and (log_grad is None or log_grad == -math.inf or math.isfinite(log_grad))):
            rehearsal.steps.append(Step(index, loss, log_grad))
            torch.set_rng_state(state)
            rehearsal.nonfinite = find_birth(work.model, optimizer, objective, batch, index)
            return rehearsal
        updates = Updates.before_step(named) if looking else None
        take_step(work.model, optimizer, objective, batch)
        ratios: tuple[float | None, float | None] = (None, None)
        if updates is not None:
            parameters = with_updates(parameters, updates.measure(named))
            rehearsal.snapshots[-1] = Snapshot(index, rehearsal.snapshots[-1].sites, parameters)
            ratios = update_ratios(parameters)
        rehearsal.steps.append(Step(index, loss, log_grad, *ratios))
    objective.forget()
    return rehearsal


def _backward(model: nn.Module, objective: Objective, batch: Any) -> float:
    loss = objective.run(model, batch)
    if loss.requires_grad:
        loss.backward()
    return float(loss.detach())


def take_step(model: nn.Module, optimizer: Optimizer, objective: Objective, batch: Any) -> None:
    """One optimizer step; LBFGS gets the closure it needs."""
    if not isinstance(optimizer, LBFGS):
        optimizer.step()
        return

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective.run(model, fresh(batch))
        loss.backward()
        return loss

    optimizer.step(closure)


def total_log_norm(gradients: list[Tensor]) -> float | None:
    """ln of the global gradient norm over tensors of any device and dtype; None for no gradient at all."""
    if not gradients:
        return None
    total = math.hypot(*(norms([dense(g)])[0] for g in gradients if g.numel()))
    return -math.inf if total == 0 else math.log(total) if total > 0 else math.nan


def update_ratios(parameters: tuple[Parameter, ...]) -> tuple[float | None, float | None]:
    """Median and largest ||update|| / ||weight|| over the weight matrices that have an update."""
    logs = [p.log_update_ratio for p in parameters if len(p.shape) > 1 and p.log_update_ratio is not None]
    finite = [math.exp(min(log, 700.0)) for log in logs if not math.isnan(log)]
    return (statistics.median(finite), max(finite)) if finite else (None, None)


def find_birth(model: nn.Module, optimizer: Optimizer, objective: Objective, batch: Any, step: int) -> NonFinite | None:
    """Where the NaN or Inf of this step was born: data, weights, forward op, or backward op."""
    source = find_bad_source(objective.inputs(batch), model.named_parameters(), step)
    if source is not None:
        return source
    born = find_forward_birth(names_of(model), lambda: objective.run(model, batch), step)
    born = born or find_bad_data(batch, "target", step)  # last, for a loss may leave out targets that are NaN
    if born is not None:
        return born
    optimizer.zero_grad()
    seen = observe(model, optimizer, objective, batch)
    return find_backward_birth(seen.sites, {n: p.grad for n, p in model.named_parameters()}, step)
