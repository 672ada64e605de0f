"""Interventions on copies: overfit one batch; move the suspected lever and overfit again.

A plateau is no failure and a falling curve no proof: whether a network can learn is asked, not read off.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish import reading
from unvanish.torch.rehearsal.copies import working_copy
from unvanish.torch.rehearsal.objective import Objective, fresh
from unvanish.torch.rehearsal.rehearse import take_step
from unvanish.torch.views.inputs import view_inputs
from unvanish.torch.views.parameters import is_low_precision
from unvanish.types import Experiment, Flow

_FACTORS = (0.1, 0.01, 10.0, 100.0)
_GOOD_RATIOS = (0.01, 0.1)  # update / weight of a brisk but sound step
_PATIENCE = 3  # a loss that still falls gets up to four times the steps
_STILL = 0.005  # fall per quarter, as a share of the first loss
_NEAR = 2.0  # times the constant predictor's loss: above it, a loss may fall for ever and nothing be learnt
_NOTHING = 0.02  # progress on changing batches below which a batch learnt by heart proves little
_ENOUGH = 0.5  # this much progress on one batch settles that the network can learn


@dataclass(frozen=True, slots=True)
class Attempt:
    """To learn one batch by heart: every ``run`` trains a fresh copy of the user's program for ``steps`` steps.

    ``floor`` is the constant predictor's loss on the batch, None where it is not known.
    """

    model: nn.Module
    optimizer: Optimizer
    objective: Objective
    batch: Any
    steps: int
    floor: float | None

    def run(self, lever: str = "none", factor: float = 1.0, patience: int = 0) -> Experiment:
        """Train with one lever moved; up to ``patience`` times ``steps`` more where the loss still falls at the end."""
        work = working_copy(self.model, self.optimizer, (self.objective.loss_fn, self.objective.objective))
        assert work.optimizer is not None, "the optimizer is copied with the model"
        batch, floor = self.batch, self.floor
        if lever == "learning-rate":
            for group in work.optimizer.param_groups:
                group["lr"] = group["lr"] * factor if group.get("lr") is not None else None
        if lever == "float32":
            work.model.float()
            work.optimizer.state.clear()
            batch = _widened(batch)
        if lever.endswith("standardized"):
            batch = _standardized(batch, inputs=lever.startswith("inputs"))
            floor = 1.0 if lever.startswith("targets") and floor is not None else floor
        training = _train(work.model, work.optimizer, Objective(*work.loss), batch)
        made = Experiment(lever, factor, tuple(itertools.islice(training, self.steps)), floor)  # type: ignore[arg-type]
        while patience > 0 and (made.progress or 0.0) < _ENOUGH and _falling(made.losses[-self.steps :], floor):
            patience -= 1
            made = replace(made, losses=(*made.losses, *itertools.islice(training, self.steps)))
        return made

    def tried(self, lever: str, factor: float = 1.0) -> tuple[Experiment, ...]:
        """The run with a lever moved; none where the program refuses it (targets outside of what its loss takes)."""
        try:
            return (self.run(lever, factor),)
        except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError):
            return ()


def _falling(losses: Sequence[float], floor: float | None) -> bool:
    """Is the end clearly below what came just before it, and near enough to the floor that a longer look can tell?"""
    quarter = len(losses) // 4
    if quarter < 2 or not all(map(math.isfinite, losses)):
        return False
    before, end = (statistics.median(losses[-k * quarter :][:quarter]) for k in (2, 1))
    return before - end > _STILL * abs(losses[0]) and (floor is None or end < _NEAR * floor)


def _train(model: nn.Module, optimizer: Optimizer, objective: Objective, batch: Any) -> Iterator[float]:
    """The losses of a training without end; it stops where the loss leaves the numbers or requires no gradient."""
    while True:
        optimizer.zero_grad()
        loss = objective.run(model, fresh(batch))
        value = float(loss.detach())
        yield value
        if not math.isfinite(value) or not loss.requires_grad:
            break
        loss.backward()
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
    attempt = Attempt(model, optimizer, objective, batch, steps, flow.loss.floor)
    base = attempt.run(patience=_PATIENCE)
    reached = base.progress or 0.0
    levers: list[tuple[str, float]] = []
    if reached < 0.9:
        scales = ("inputs-standardized", "targets-standardized")
        levers += [(lever, 1.0) for lever in scales if _movable(objective, batch, lever)]
    if reached < _ENOUGH or (reached < 0.9 and (reading.trains(flow) or 0.0) < _NOTHING):
        if any(is_low_precision(p) for p in model.parameters()):
            levers.append(("float32", 1.0))
        levers += [("learning-rate", factor) for factor in _factors(flow)]
    return (base, *(made for lever, factor in levers for made in attempt.tried(lever, factor)))


def format_experiments(
    model: nn.Module, optimizer: Optimizer, objective: Objective, batch: Any, flow: Flow, steps: int
) -> tuple[Experiment, ...]:
    """For a low-precision network that is not finite at the first step: is it so in float32 too?"""
    if steps == 0 or not any(is_low_precision(p) for p in model.parameters()):
        return ()
    return Attempt(model, optimizer, objective, batch, steps, flow.loss.floor).tried("float32")


def _factors(flow: Flow) -> tuple[float, ...]:
    """Learning rates worth a try: decades around the user's, and the one that would give sound updates."""
    if flow.optimizer is None or not flow.optimizer.given or max(flow.optimizer.learning_rates, default=0) == 0:
        return ()
    ratio = flow.steps[0].update_ratio if flow.steps else None
    if ratio is None or not 0 < ratio < math.inf or _GOOD_RATIOS[0] / 200 <= ratio <= 200 * _GOOD_RATIOS[1]:
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
    if not isinstance(part, Tensor) or not part.is_floating_point() or part.ndim == 0 or len(part) < 2:
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
