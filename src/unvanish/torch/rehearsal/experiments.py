"""Which interventions are worth a try: overfit one batch; move the suspected lever and overfit again.

A plateau is no failure and a falling curve no proof: whether a network can learn is asked, not read off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from unvanish import reading
from unvanish.torch.rehearsal.altered import features_last, movable
from unvanish.torch.rehearsal.attempt import ENOUGH, SOME, Attempt, dropouts
from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.views.parameters import is_low_precision
from unvanish.types import Experiment, Flow

_FACTORS = (0.1, 0.01, 10.0, 100.0)
_SLOWER = (0.1, 0.01)
_LOGITS = (10.0, 100.0)
_USUAL_EPS, _LARGE_EPS = 1e-8, 1e-3
_STRONG_DECAY, _STRONG_DROPOUT = 0.02, 0.7
_UNEVEN = 100.0  # times the smallest learning rate of a group is the largest
_HEAVY, _LONGEST = 0.97, 400  # a momentum that shows only after many steps, and how many are taken
_HALF, _LONGER = 0.1, 5  # progress on one batch that decides nothing yet, and how many times longer is waited then
_BRISK, _IDLE = 0.1, 0.1  # update / weight, in the first steps, of a training that removes so little
_GOOD_RATIOS = (0.01, 0.1)  # update / weight of a brisk but sound step
_NOTHING = 0.02  # progress on changing batches below which a batch learnt by heart proves little


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
    if reached < ENOUGH or (reached < 0.9 and (reading.trains(flow) or 0.0) < _NOTHING):
        if any(is_low_precision(p) for p in model.parameters()):
            levers.append(("float32", 1.0))
        levers += [("learning-rate", factor) for factor in _factors(flow)]
        levers += [("learning-rate-level", 1.0)] if _uneven(flow) else []
        levers += [("eps", _USUAL_EPS / eps) for eps in _large_eps(flow)]
        levers += [("weight-decay", 0.0)] if _decays_strongly(flow) else []
        levers += [("logits", factor) for factor in _LOGITS if _of_logits(flow)]
        levers += [("dropout", 0.0)] if any(module.p >= _STRONG_DROPOUT for module in dropouts(model)) else []
    if reached >= ENOUGH and len(batches) > 1 and _too_brisk(flow):
        levers += [("learning-rate-in-training", factor) for factor in _SLOWER]
    return (
        base,
        *_of_terms(attempt, flow),
        *(made for lever, factor in levers for made in attempt.tried(lever, factor)),
        *_at_length(attempt, flow, reached),
    )


def _at_length(attempt: Attempt, flow: Flow, reached: float) -> tuple[Experiment, ...]:
    """Trainings that show only after many steps what comes of a rate, and of smaller ones.

    A large momentum makes 1 / (1 - momentum) of the rate, in as many steps.  A large rate may half learn one batch, and
    of the training as little as small rates do in few steps.
    """
    view = flow.optimizer
    if view is None or not view.given or len(attempt.batches) < 2:
        return ()
    if _HEAVY <= view.momentum < 1 and max(reached, reading.trains(flow) or 0.0) >= reading.LEARNS:
        steps = min(_LONGEST, round(4 / (1 - view.momentum)))
    elif _HALF <= reached < ENOUGH and _too_brisk(flow):
        steps = _LONGER * attempt.steps
    else:
        return ()
    long = replace(attempt, steps=steps)
    return tuple(made for factor in (1.0, *_SLOWER) for made in long.tried("learning-rate-in-training", factor))


def _of_terms(attempt: Attempt, flow: Flow) -> tuple[Experiment, ...]:
    """Is the one term that says how good the answers are learnt; if not, is it without the others?"""
    if flow.loss.term is None or isinstance(attempt.optimizer, LBFGS):  # which asks for the loss again by itself
        return ()
    whole = attempt.of_term(alone=False)
    return (whole,) if reading.level(whole) < SOME else (whole, attempt.of_term(alone=True))


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


def _of_logits(flow: Flow) -> bool:
    """Does the loss, or every term of it, take logits?"""
    kinds = {kind for kind, _ in flow.loss.parts} or {flow.loss.kind}
    return kinds <= {"cross_entropy", "bce_with_logits"}


def _uneven(flow: Flow) -> bool:
    rates = flow.optimizer.learning_rates if flow.optimizer is not None and flow.optimizer.given else ()
    return len(rates) > 1 and 0 < _UNEVEN * min(rates) <= max(rates)


def _decays_strongly(flow: Flow) -> bool:
    return flow.optimizer is not None and flow.optimizer.given and flow.optimizer.weight_decay >= _STRONG_DECAY


def _too_brisk(flow: Flow) -> bool:
    """One batch is learnt by heart, the training itself goes nowhere, and its first steps were large.

    A step of LBFGS is many on one batch, and large for that.
    """
    given = flow.optimizer is not None and flow.optimizer.given and flow.optimizer.name != "LBFGS"
    return given and reading.largest_first_update(flow) > _BRISK and (reading.trains(flow) or 0.0) < _IDLE
