"""Settings of an optimizer that ruin what a training has: a rate that rises too far, a decay stronger than all gradients."""

from __future__ import annotations

import itertools
import math
import statistics

from unvanish import reading
from unvanish.types import Flow, Parameter

_PARTS = 20  # pieces of a training whose median losses are compared
_LEARNT, _LOST = 0.5, 0.9  # of the constant predictor's loss: far below it, and back at it
_RISEN = 10.0  # times the rate that taught it
_SWEPT = 1000.0  # a rate that does nothing but rise so far is a search for the right one
_FALL = math.log(10)  # nats of every weight matrix
_STRONGER = 2.0  # decay against gradient, at the start
_IDLE = 0.06


def unlearnt(flow: Flow) -> tuple[float, float] | None:
    """(The rate that taught it, the rate that ruined it), where all that was learnt was lost at a rate much higher."""
    floor, length = flow.loss.floor, len(flow.steps) // _PARTS
    rates = [(step.index, step.rate) for step in flow.steps if step.rate]
    if floor is None or floor <= 0 or not length or len(rates) < 2:
        return None
    parts = [flow.steps[k * length : (k + 1) * length] for k in range(_PARTS)]
    losses = [statistics.median(step.loss for step in part) for part in parts]
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    best = min(range(_PARTS), key=finite.__getitem__)
    if finite[best] > _LEARNT * floor or min(finite[-2:]) < _LOST * floor:
        return None
    taught = [rate for index, rate in rates if index <= parts[best][-1].index]
    ruined = max((rate for index, rate in rates if index > parts[best][-1].index), default=0.0)
    swept = all(a[1] < b[1] for a, b in itertools.pairwise(rates)) and ruined > _SWEPT * rates[0][1]
    return (max(taught), ruined) if taught and ruined >= _RISEN * max(taught) and not swept else None


def decayed(flow: Flow) -> float | None:
    """The factor by which weight decay shrank the weights, all of them and at the cost of all learning; else None.

    It must be stronger than the gradients were at the start (where it is added to them), or long and strong enough to
    do it alone (where it is taken off the weights).
    """
    decay = 0.0 if flow.optimizer is None else flow.optimizer.weight_decay
    if flow.optimizer is None or not decay or not flow.snapshots or (reading.trains(flow) or 0.0) >= _IDLE:
        return None
    first = {p.name: p for p in reading.trainable(flow) if len(p.shape) > 1 and p.log_weight is not None}
    last = reading.last_parameters(flow)
    falls = [_fall(p, last[name]) for name, p in first.items() if name in last]
    if not falls or min(falls) < _FALL:
        return None
    rate = max(flow.optimizer.learning_rates, default=0.0)
    alone = flow.snapshots[-1].step * rate * decay >= _FALL
    stronger = [_ratio(p, decay) for p in first.values() if p.log_grad is not None]
    if not alone and (not stronger or statistics.median(stronger) < math.log(_STRONGER)):
        return None
    return math.exp(min(statistics.median(falls), 700.0))


def learns_without_decay(flow: Flow) -> bool:
    """Weight decay alone keeps it from learning: without, the same network does."""
    return reading.best_lever(flow, "weight-decay", above=-1.0) is not None and not reading.learns(flow)


def _fall(before: Parameter, after: Parameter) -> float:
    assert before.log_weight is not None, "chosen so"
    return -math.inf if after.log_weight is None else before.log_weight - after.log_weight


def _ratio(parameter: Parameter, decay: float) -> float:
    assert parameter.log_weight is not None, "chosen so"
    assert parameter.log_grad is not None, "chosen so"
    return math.log(decay) + parameter.log_weight - parameter.log_grad
