"""Enough of the user's first step to train a copy on its batch later: interventions after the script has ended.

Possible where one network is called once and one standard loss, or the model's own, reads its output: then the loss
is built again, and believed only if it gives the value the user's own loss had.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish import reading
from unvanish.torch.probe.graph import Graph
from unvanish.torch.probe.saved import readable
from unvanish.torch.rehearsal.attempt import Attempt
from unvanish.torch.rehearsal.copies import Working, preserved_randomness, working_copy
from unvanish.torch.rehearsal.experiments import experiments
from unvanish.torch.rehearsal.hooks import drop
from unvanish.torch.rehearsal.objective import Objective, main_tensor
from unvanish.torch.run.quiet import unheard
from unvanish.torch.views.floors import constant_loss
from unvanish.torch.views.mixing import mixed_at
from unvanish.torch.views.padding import only_padding
from unvanish.types import Experiment, Flow, LossView

_LARGEST = 50_000_000  # parameters of a model that is still copied
_FAR = 2.0  # times the rate of most steps: a schedule's full rate is worth a try
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": nn.functional.cross_entropy,
    "nll": nn.functional.nll_loss,
    "mse": nn.functional.mse_loss,
    "l1": nn.functional.l1_loss,
    "bce": nn.functional.binary_cross_entropy,
    "bce_with_logits": nn.functional.binary_cross_entropy_with_logits,
}


@dataclass(slots=True)
class Batch:
    """One call of one network, and the loss that was made of its output; ``part``: it is one term of several."""

    module: nn.Module
    inputs: Any
    target: Tensor | None
    loss: LossView
    part: bool = False


@dataclass(slots=True)
class Trial:
    """Copies as they were at the first step."""

    work: Working
    batch: Batch


def batch_of(
    module: nn.Module, inputs: Any, output: Any, graph: Graph, loss: LossView, target: Tensor | None
) -> Batch | None:
    """What can be trained on again, or None where the loss cannot be built from the network's output."""
    if sum(p.numel() for p in module.parameters()) > _LARGEST or not math.isfinite(loss.value):
        return None
    own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and _same(float(own.detach()), loss.value):
        return Batch(module, _cloned(inputs), None, replace(loss, value=float(own.detach())))
    nodes = [vertex for vertex in graph.vertices if vertex.kind == "loss"]
    if len(nodes) == 1 and readable(nodes[0]):
        saved = getattr(nodes[0].node, "_saved_target", None)
        target = target if saved is None else saved
    read = main_tensor(output)
    if read is None or target is None or loss.kind not in _LOSSES:
        return None
    try:
        with torch.no_grad():
            value, mean = (float(_rebuilt(loss.kind, how)(read.detach(), target)) for how in (loss.reduction, "mean"))
    except (RuntimeError, ValueError, IndexError):
        return None
    part = not _same(value, loss.value)
    if part and not math.isclose(value, loss.value * (loss.term_share or 0.0), rel_tol=1e-3):
        return None
    floor = constant_loss(loss.kind, target)
    floor = floor * value / mean if floor is not None and mean else floor
    return Batch(module, _cloned(inputs), target.detach().clone(), replace(loss, value=value, floor=floor), part)


def keep(batch: Batch, optimizer: Optimizer) -> Trial | None:
    """Copy model and optimizer before their first step; None where they cannot be copied."""
    try:
        work = working_copy(batch.module, optimizer, ())
    except ValueError:
        return None
    if work.optimizer is not None:
        drop(work.optimizer)  # of a schedule in a hook, the rates that were seen are tried
    return Trial(work, batch)


def tried(trial: Trial, flow: Flow, rates: tuple[float, ...] = (), steps: int = 40) -> tuple[Experiment, ...]:
    """Train copies on the first batch with one lever moved each.

    Args:
        trial: the copies.
        flow: what was seen of the training itself.
        rates: the learning rates that the groups had in most of it; without them those of the first step, or of the
            schedule that begins there.
        steps: of each experiment.
    """
    batch, (model, optimizer, _) = trial.batch, trial.work
    objective = _objective(batch)
    data = _data(batch)
    assert optimizer is not None, "copied with the model"
    full = _set_rates(optimizer, rates)
    attempt = Attempt(model, optimizer, objective, [data], steps, batch.loss.floor)
    with preserved_randomness(), torch.enable_grad(), unheard():
        if batch.part:
            return (replace(attempt.run(), lever="term-alone"),) if reading.term_stands(flow) else ()
        made = experiments(model, optimizer, objective, [data], replace(flow, loss=batch.loss), steps)
        if full < _FAR or (made[0].progress or 0.0) >= reading.LEARNS:
            return made
        return (*made, *attempt.tried("learning-rate", full))


def examined(trial: Trial, flow: Flow) -> Flow:
    """The flow with what other numbers in the first batch show: samples that read one another, padding that is read."""
    if trial.batch.part:
        return flow
    model, objective, data = trial.work.model, _objective(trial.batch), _data(trial.batch)
    with preserved_randomness(), torch.enable_grad(), unheard():
        mixed = None if trial.batch.target is None else mixed_at(model, objective, data)
        return replace(flow, mixed=mixed, cuts=(*flow.cuts, *only_padding(model, objective, data)))


def _data(batch: Batch) -> Any:
    return batch.inputs if batch.target is None else (batch.inputs, batch.target)


def _objective(batch: Batch) -> Objective:
    return Objective(_rebuilt(batch.loss.kind, batch.loss.reduction) if batch.target is not None else None, None)


def _set_rates(optimizer: Optimizer, rates: tuple[float, ...]) -> float:
    """Give the groups these learning rates; the factor by which the full rate of a schedule is larger."""
    groups = [group for group in optimizer.param_groups if group.get("lr") is not None]
    full = 1.0
    for group, rate in zip(groups, rates, strict=False):  # it may have got more groups since
        full = max(full, float(group.get("initial_lr", group["lr"])) / rate) if rate else full
        group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate
    return full


def _rebuilt(kind: str, reduction: str | None) -> Callable[[Any, Tensor], Tensor]:
    """``loss_fn(output, target)`` on the tensor a loss would read; (samples, time, classes) are folded for classes."""

    def loss_fn(output: Any, target: Tensor) -> Tensor:
        read = main_tensor(output)
        assert read is not None, "there was one at the first step"
        if kind in ("cross_entropy", "nll") and read.ndim == 3 and target.ndim == 1:
            read = read.reshape(-1, read.shape[-1])
        elif read.numel() == target.numel() and read.shape != target.shape:
            read = read.reshape(target.shape)
        target = target if target.dtype == torch.long else target.float()
        return _LOSSES[kind](read.float(), target, reduction="sum" if reduction == "sum" else "mean")

    return loss_fn


def _same(value: float, seen: float) -> bool:
    """Equal, or divided by the number of accumulated batches."""
    if value == 0 or seen == 0:
        return value == seen
    parts = value / seen
    return 0.9 < parts < 1025 and abs(parts - round(parts)) < 1e-3 * parts


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _cloned(part) for key, part in value.items()}
    return type(value)(_cloned(part) for part in value) if type(value) in (tuple, list) else value
