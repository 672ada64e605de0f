"""Interventions on copies: overfit one batch; move the suspected lever and overfit again.

A plateau is no failure and a falling curve no proof: whether a network can learn is asked, not read off.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish.torch.copies import working_copy
from unvanish.torch.inputs import view_inputs
from unvanish.torch.objective import Objective
from unvanish.torch.rehearse import take_step
from unvanish.types import Experiment, Flow

_FACTORS = (0.1, 0.01, 10.0, 100.0)
_GOOD_RATIOS = (0.01, 0.1)  # update / weight of a brisk but sound step
_LOW_PRECISION = (torch.float16, torch.bfloat16)
_ENOUGH = 0.5  # this much progress on one batch settles that the network can learn


def overfit(
    model: nn.Module,
    optimizer: Optimizer,
    objective: Objective,
    batch: Any,
    steps: int,
    floor: float | None,
    *,
    lever: str = "none",
    factor: float = 1.0,
) -> Experiment:
    """Train a fresh copy on one batch for ``steps`` steps with one lever moved."""
    work = working_copy(model, optimizer, (objective.loss_fn, objective.objective))
    trained = Objective(*work.loss)
    assert work.optimizer is not None, "the optimizer is copied with the model"
    if lever == "learning-rate":
        for group in work.optimizer.param_groups:
            group["lr"] = group["lr"] * factor
    if lever == "float32":
        work.model.float()
        work.optimizer.state.clear()
        batch = _widened(batch)
    if lever.endswith("standardized"):
        batch = _standardized(batch, inputs=lever.startswith("inputs"))
        floor = 1.0 if lever.startswith("targets") and floor is not None else floor
    losses = tuple(_train(work.model, work.optimizer, trained, batch, steps))
    return Experiment(lever, factor, losses, floor)  # type: ignore[arg-type]


def _train(model: nn.Module, optimizer: Optimizer, objective: Objective, batch: Any, steps: int) -> Iterator[float]:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = objective.run(model, batch)
        value = float(loss.detach())
        yield value
        if not math.isfinite(value) or not loss.requires_grad:
            break
        loss.backward()  # type: ignore[no-untyped-call]
        take_step(model, optimizer, objective, batch)


def experiments(
    model: nn.Module, optimizer: Optimizer, objective: Objective, batch: Any, flow: Flow, steps: int
) -> tuple[Experiment, ...]:
    """Overfit one batch; if that fails, move the number format, the scales and the learning rate, one at a time.

    Args:
        model: the user's model; only copies of it are trained.
        optimizer: the user's optimizer, or ours where none was given (then its learning rate is not questioned).
        objective: how a batch becomes a loss.
        batch: the batch to learn by heart.
        flow: what is known so far: the constant predictor's loss, the optimizer, the updates.
        steps: optimizer steps per experiment.

    Returns:
        The experiments made, the unmoved one first.
    """
    floor = flow.loss.floor
    base = overfit(model, optimizer, objective, batch, steps, floor)
    reached = base.progress or 0.0
    levers: list[tuple[str, float]] = []
    if reached < 0.9:
        scales = ("inputs-standardized", "targets-standardized")
        levers += [(lever, 1.0) for lever in scales if _movable(objective, batch, lever)]
    if reached < _ENOUGH:
        if any(p.dtype in _LOW_PRECISION for p in model.parameters()):
            levers.append(("float32", 1.0))
        levers += [("learning-rate", factor) for factor in _factors(flow)]
    moved = (overfit(model, optimizer, objective, batch, steps, floor, lever=k, factor=f) for k, f in levers)
    return (base, *moved)


def format_experiments(
    model: nn.Module, optimizer: Optimizer, objective: Objective, batch: Any, flow: Flow, steps: int
) -> tuple[Experiment, ...]:
    """For a low-precision network that is not finite at the first step: is it so in float32 too?"""
    if steps == 0 or all(p.dtype not in _LOW_PRECISION for p in model.parameters()):
        return ()
    return (overfit(model, optimizer, objective, batch, steps, flow.loss.floor, lever="float32"),)


def _factors(flow: Flow) -> tuple[float, ...]:
    """Learning rates worth a try: decades around the user's, and the one that would give sound updates."""
    if flow.optimizer is None or not flow.optimizer.given or max(flow.optimizer.learning_rates) == 0:
        return ()
    ratio = flow.steps[0].update_ratio if flow.steps else None
    if ratio is None or not 0 < ratio < _GOOD_RATIOS[0] / 200:
        return _FACTORS
    return (*_FACTORS, *(good / ratio for good in _GOOD_RATIOS))


def _widened(batch: Any) -> Any:
    """The batch with its half-precision tensors in float32."""
    if isinstance(batch, Tensor):
        return batch.float() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: _widened(value) for key, value in batch.items()}
    return type(batch)(_widened(part) for part in batch) if isinstance(batch, tuple | list) else batch


def _movable(objective: Objective, batch: Any, lever: str) -> bool:
    """Only pairs of plain floating tensors can be standardised, and only odd scales are worth a try."""
    if objective.loss_fn is None or not isinstance(batch, tuple | list) or len(batch) != 2:
        return False
    part = batch[0] if lever.startswith("inputs") else batch[1]
    if not isinstance(part, Tensor) or not part.is_floating_point() or len(part) < 2:
        return False
    (view,) = view_inputs(part, None)
    assert view.moments is not None, "floating tensors are measured"
    spread = view.feature_spread or 1.0
    return not 0.05 < view.moments.rms < 5 or spread > 20 or abs(view.moments.mean) > 4 * (view.moments.batch_std or 1)


def _standardized(batch: Any, *, inputs: bool) -> tuple[Any, Any]:
    """(input, target) with one of the two brought to mean 0 and standard deviation 1 per feature."""
    part = batch[0] if inputs else batch[1]
    axes = [0] if part.ndim <= 2 else [0, *range(2, part.ndim)]
    std = part.std(dim=axes, keepdim=True, correction=0)
    scaled = (part - part.mean(dim=axes, keepdim=True)) / torch.where(std > 0, std, torch.ones_like(std))
    return (scaled, batch[1]) if inputs else (batch[0], scaled)
