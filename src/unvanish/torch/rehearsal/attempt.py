"""One intervention: to learn a batch by heart, or to train on, on a copy of the program with one lever moved."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from unvanish import reading
from unvanish.torch.probe.graph import read_graph
from unvanish.torch.rehearsal.altered import ScaledLogits, standardized, widened
from unvanish.torch.rehearsal.copies import working_copy
from unvanish.torch.rehearsal.objective import Objective, fresh
from unvanish.torch.rehearsal.rehearse import take_step
from unvanish.torch.rehearsal.together import parts_of
from unvanish.torch.views.terms import find_term
from unvanish.types import Experiment

ENOUGH = 0.5  # this much progress on one batch settles that the network can learn
SOME = 0.8  # of what the best constant answer gives: below it, a term is being learnt, whatever the noise
_SETTINGS = {
    "learning-rate": "lr", "learning-rate-in-training": "lr", "eps": "eps", "weight-decay": "weight_decay",
}  # fmt: skip
_PATIENCE = 3  # a loss that still falls gets up to four times the steps
_STILL = 0.005  # fall per quarter, as a share of the first loss
_NEAR = 2.0  # times the constant predictor's loss: above it, a loss may fall for ever and nothing be learnt
_ROUNDS, _ROUND = 8, 40  # for a term of several


@dataclass(frozen=True, slots=True)
class Attempt:
    """To learn the first batch by heart: every ``run`` trains a fresh copy of the user's program for ``steps`` steps.

    ``floor`` is the constant predictor's loss on the batch, None where it is not known; ``last`` = features lie along
    the last axis of the input.
    """

    model: nn.Module
    optimizer: Optimizer
    objective: Objective
    batches: Sequence[Any]
    steps: int
    floor: float | None
    last: bool = False

    def run(self, lever: str = "none", factor: float = 1.0) -> Experiment:
        """Train with one lever moved; longer where the loss still falls at the end.

        A lever is waited for only where it has already beaten the constant predictor; a rate is not, for a larger one
        wears down a lost gradient in the end.
        """
        model, optimizer, objective = self._copied()
        batches, floor = self.batches[:1], self.floor
        _move(lever, factor, model, optimizer)
        if lever == "learning-rate-in-training":
            batches = self.batches
        if lever == "float32":
            batches = [widened(batches[0])]
        if lever.endswith("standardized"):
            batches = [standardized(batches[0], inputs=lever.startswith("inputs"), last=self.last)]
            floor = 1.0 if lever.startswith("targets") and floor is not None else floor
        training = _train(model, optimizer, objective, batches)
        with ScaledLogits(factor) if lever == "logits" else nullcontext():
            return self._waited(Experiment(lever, factor, (), floor), training)  # type: ignore[arg-type]

    def _waited(self, made: Experiment, training: Iterator[float]) -> Experiment:
        """The experiment with the losses of a training, which goes on where it promises more."""
        made = replace(made, losses=tuple(itertools.islice(training, self.steps)))
        near = _NEAR if made.lever == "none" else 1.0
        for _ in range(0 if made.lever.startswith("learning-rate") else _PATIENCE):
            if (made.progress or 0.0) >= ENOUGH or not _falling(made.losses[-self.steps :], made.floor, near):
                break
            made = replace(made, losses=(*made.losses, *itertools.islice(training, self.steps)))
        return made

    def of_term(self, *, alone: bool) -> Experiment:
        """Train on the whole loss, or on one of its terms ``alone``, and follow this term, in units of its floor.

        Up to 320 steps, for a term that is small beside the others takes its time; fewer where it falls.
        """
        model, optimizer, objective = self._copied()

        def level(loss: Tensor) -> float:
            term = find_term(read_graph(loss, set()))
            if term is not None and alone:
                term.alone()
            return math.nan if term is None else term.level

        training = _train(model, optimizer, objective, self.batches[:1], level)
        made = Experiment("term-alone" if alone else "term", 1.0, (), 1.0)
        for _ in range(_ROUNDS):
            made = replace(made, losses=(*made.losses, *itertools.islice(training, _ROUND)))
            if reading.level(made) < (ENOUGH if alone else SOME):
                break
        return made

    def _copied(self) -> tuple[nn.Module, Optimizer, Objective]:
        """The program anew."""
        work = working_copy(self.model, self.optimizer, (self.objective.loss_fn, self.objective.objective))
        assert work.optimizer is not None, "the optimizer is copied with the model"
        return work.model, work.optimizer, Objective(*work.loss)

    def tried(self, lever: str, factor: float = 1.0) -> tuple[Experiment, ...]:
        """The run with a lever moved; none where the program refuses it (targets outside of what its loss takes)."""
        try:
            return (self.run(lever, factor),)
        except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError):
            return ()


def _falling(losses: Sequence[float], floor: float | None, near: float) -> bool:
    """Is the end clearly below what came just before it, and near enough to the floor that a longer look can tell?"""
    quarter = len(losses) // 4
    if quarter < 2 or not all(map(math.isfinite, losses)):
        return False
    before, end = (statistics.median(losses[-k * quarter :][:quarter]) for k in (2, 1))
    return before - end > _STILL * abs(losses[0]) and (floor is None or end < near * floor)


def _move(lever: str, factor: float, model: nn.Module, optimizer: Optimizer) -> None:
    """What a lever changes of the network and its optimizer."""
    if lever in _SETTINGS:
        _scale(optimizer, _SETTINGS[lever], factor)
    if lever == "learning-rate-level":
        largest = max(group["lr"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["lr"] = largest
    if lever == "dropout":
        for module in dropouts(model):
            module.p *= factor
    if lever == "float32":
        model.float()
        for part in parts_of(optimizer):
            part.state.clear()


def _scale(optimizer: Optimizer, setting: str, factor: float) -> None:
    for group in optimizer.param_groups:
        group[setting] = group[setting] * factor if group.get(setting) is not None else None


def _value(loss: Tensor) -> float:
    return float(loss.detach())


def _train(
    model: nn.Module,
    optimizer: Optimizer,
    objective: Objective,
    batches: Sequence[Any],
    read: Callable[[Tensor], float] = _value,
) -> Iterator[float]:
    """The losses of a training without end; it stops where the loss leaves the numbers or requires no gradient."""
    for batch in itertools.cycle(batches):
        optimizer.zero_grad()
        loss = objective.run(model, fresh(batch))
        value = read(loss)
        yield value
        if not math.isfinite(value) or not loss.requires_grad:
            break
        loss.backward()
        take_step(model, optimizer, objective, batch)


def dropouts(model: nn.Module) -> list[Any]:
    """The modules that silence units at random."""
    return [m for m in model.modules() if isinstance(m, _DropoutNd) and m.training]
