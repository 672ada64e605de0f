"""Interventions on copies: overfit one batch; move the suspected lever and overfit again.

A plateau is no failure and a falling curve no proof: whether a network can learn is asked, not read off.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import LBFGS, Optimizer

from unvanish import reading
from unvanish.torch.probe.graph import read_graph
from unvanish.torch.rehearsal.altered import features_last, movable, standardized, widened
from unvanish.torch.rehearsal.copies import working_copy
from unvanish.torch.rehearsal.objective import Objective, fresh
from unvanish.torch.rehearsal.rehearse import take_step
from unvanish.torch.views.parameters import is_low_precision
from unvanish.torch.views.terms import find_term
from unvanish.types import Experiment, Flow

_FACTORS = (0.1, 0.01, 10.0, 100.0)
_SLOWER = (0.1, 0.01)
_USUAL_EPS, _LARGE_EPS = 1e-8, 1e-3
_STRONG_DECAY, _STRONG_DROPOUT = 0.02, 0.7
_SETTINGS = {
    "learning-rate": "lr", "learning-rate-in-training": "lr", "eps": "eps", "weight-decay": "weight_decay",
}  # fmt: skip
_BRISK, _IDLE = 0.1, 0.1  # update / weight, in the first steps, of a training that removes so little
_GOOD_RATIOS = (0.01, 0.1)  # update / weight of a brisk but sound step
_PATIENCE = 3  # a loss that still falls gets up to four times the steps
_STILL = 0.005  # fall per quarter, as a share of the first loss
_NEAR = 2.0  # times the constant predictor's loss: above it, a loss may fall for ever and nothing be learnt
_NOTHING = 0.02  # progress on changing batches below which a batch learnt by heart proves little
_ROUNDS, _ROUND = 8, 40  # for a term of several
_SOME = 0.8  # of what the best constant answer gives: below it, a term is being learnt, whatever the noise
_ENOUGH = 0.5  # this much progress on one batch settles that the network can learn


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
        if lever == "learning-rate-in-training":
            batches = self.batches
        if lever in _SETTINGS:
            _scale(optimizer, _SETTINGS[lever], factor)
        if lever == "dropout":
            for module in _dropouts(model):
                module.p *= factor
        if lever == "float32":
            model.float()
            optimizer.state.clear()
            batches = [widened(batches[0])]
        if lever.endswith("standardized"):
            batches = [standardized(batches[0], inputs=lever.startswith("inputs"), last=self.last)]
            floor = 1.0 if lever.startswith("targets") and floor is not None else floor
        training = _train(model, optimizer, objective, batches)
        made = Experiment(lever, factor, tuple(itertools.islice(training, self.steps)), floor)  # type: ignore[arg-type]
        near = _NEAR if lever == "none" else 1.0
        for _ in range(0 if lever.startswith("learning-rate") else _PATIENCE):
            if (made.progress or 0.0) >= _ENOUGH or not _falling(made.losses[-self.steps :], floor, near):
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
            if reading.level(made) < (_ENOUGH if alone else _SOME):
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


def experiments(
    model: nn.Module, optimizer: Optimizer, objective: Objective, batches: Sequence[Any], flow: Flow, steps: int
) -> tuple[Experiment, ...]:
    """Overfit one batch; if that fails, move the number format, the scales and the learning rate, one at a time.

    Args:
        model: the user's model; only copies of it are trained.
        optimizer: the user's optimizer, or ours where none was given (then its learning rate is not questioned).
        objective: how a batch becomes a loss.
        batches: the first is the batch to learn by heart.
        flow: what is known so far: the constant predictor's loss, the optimizer, the updates.
        steps: optimizer steps per experiment.

    Returns:
        The experiments made, the unmoved one first.
    """
    attempt = Attempt(model, optimizer, objective, batches, steps, flow.loss.floor, features_last(flow))
    base = attempt.run()
    reached = base.progress or 0.0
    levers: list[tuple[str, float]] = []
    if reached < 0.9:
        scales = ("inputs-standardized", "targets-standardized")
        levers += [(lever, 1.0) for lever in scales if movable(objective, batches[0], lever)]
    if reached < _ENOUGH or (reached < 0.9 and (reading.trains(flow) or 0.0) < _NOTHING):
        if any(is_low_precision(p) for p in model.parameters()):
            levers.append(("float32", 1.0))
        levers += [("learning-rate", factor) for factor in _factors(flow)]
        levers += [("eps", _USUAL_EPS / eps) for eps in _large_eps(flow)]
        levers += [("weight-decay", 0.0)] if _decays_strongly(flow) else []
        levers += [("dropout", 0.0)] if any(module.p >= _STRONG_DROPOUT for module in _dropouts(model)) else []
    if reached >= reading.LEARNS and len(batches) > 1 and _too_brisk(flow):
        levers += [("learning-rate-in-training", factor) for factor in _SLOWER]
    return (
        base,
        *_of_terms(attempt, flow),
        *(made for lever, factor in levers for made in attempt.tried(lever, factor)),
    )


def _of_terms(attempt: Attempt, flow: Flow) -> tuple[Experiment, ...]:
    """Is the one term that says how good the answers are learnt; if not, is it without the others?"""
    if flow.loss.term is None or isinstance(attempt.optimizer, LBFGS):  # which asks for the loss again by itself
        return ()
    whole = attempt.of_term(alone=False)
    return (whole,) if reading.level(whole) < _SOME else (whole, attempt.of_term(alone=True))


def format_experiments(
    model: nn.Module, optimizer: Optimizer, objective: Objective, batch: Any, flow: Flow, steps: int
) -> tuple[Experiment, ...]:
    """For a low-precision network that is not finite at the first step: is it so in float32 too?"""
    if steps == 0 or not any(is_low_precision(p) for p in model.parameters()):
        return ()
    return Attempt(model, optimizer, objective, [batch], steps, flow.loss.floor).tried("float32")


def _factors(flow: Flow) -> tuple[float, ...]:
    """Learning rates worth a try: decades around the user's, and the one that would give sound updates."""
    if flow.optimizer is None or not flow.optimizer.given or max(flow.optimizer.learning_rates, default=0) == 0:
        return ()
    ratio = flow.steps[0].update_ratio if flow.steps else None
    if ratio is None or not 0 < ratio < math.inf or _GOOD_RATIOS[0] / 20 <= ratio <= 200 * _GOOD_RATIOS[1]:
        return _FACTORS
    return (*_FACTORS, *(good / ratio for good in _GOOD_RATIOS))


def _large_eps(flow: Flow) -> tuple[float, ...]:
    """An adaptive optimizer's eps that is no mere guard against a division by zero."""
    view = flow.optimizer
    large = view is not None and view.given and view.adaptive and (view.eps or 0.0) > _LARGE_EPS
    return (view.eps,) if large and view is not None and view.eps is not None else ()


def _decays_strongly(flow: Flow) -> bool:
    return flow.optimizer is not None and flow.optimizer.given and flow.optimizer.weight_decay >= _STRONG_DECAY


def _dropouts(model: nn.Module) -> list[Any]:
    """The modules that silence units at random."""
    return [m for m in model.modules() if isinstance(m, _DropoutNd) and m.training]


def _too_brisk(flow: Flow) -> bool:
    """One batch is learnt by heart, the training itself goes nowhere, and its first steps were large.

    A step of LBFGS is many on one batch, and large for that.
    """
    given = flow.optimizer is not None and flow.optimizer.given and flow.optimizer.name != "LBFGS"
    return given and reading.largest_first_update(flow) > _BRISK and (reading.trains(flow) or 0.0) < _IDLE
