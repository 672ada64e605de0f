"""Which lever, moved on a copy, makes the network learn?"""

from __future__ import annotations

import math
import statistics

from unvanish.reading.learning import progress, trains
from unvanish.types import Experiment, Flow

_FAR = 1.5  # times the constant predictor's loss: more than the noise between batches


def best_lever(flow: Flow, lever: str, *, above: float = 0.0, below: float = math.inf) -> Experiment | None:
    """The experiment with this lever, and a factor in (above, below), that helped most, if it clearly helped.

    "Clearly": it removes at least 0.2 more of the constant predictor's loss than the unmoved program.  None where that
    was tried and its loss has no bottom to measure by, as a policy's: then a lever's has none, either, but by chance.
    """
    own = progress(flow)
    if own is None and any(e.lever == "none" for e in flow.experiments):
        return None
    base = own or 0.0
    helped = [
        e
        for e in flow.experiments
        if e.lever == lever and above < e.factor < below and (e.progress or 0.0) >= base + 0.2
    ]
    return max(helped, key=lambda e: e.progress or 0.0) if helped else None


def best_in_training(flow: Flow) -> Experiment | None:
    """The smaller learning rate that helped most on changing batches, if it removes at least 0.2 more of the loss."""
    made = [e for e in flow.experiments if e.lever == "learning-rate-in-training"]
    own = [e.progress or 0.0 for e in made if e.factor == 1]  # as long as the others
    base = own[0] if own else trains(flow) or 0.0
    tried = [e for e in made if e.factor < 1 and (e.progress or 0.0) >= base + 0.2]
    return max(tried, key=lambda e: e.progress or 0.0) if tried else None


def relieves(flow: Flow, lever: str, *, above: float = 0.0, below: float = math.inf) -> float | None:
    """The factor, in (above, below), by which moving this lever does best at a loss far above the constant predictor's.

    None where none more than halves it.

    A loss that only comes back to the constant predictor's has removed nothing of it, yet the lever was right.
    """
    base = [level(e) for e in flow.experiments if e.lever == "none"]
    moved = [(level(e), e.factor) for e in flow.experiments if e.lever == lever and above < e.factor < below]
    if not base or not moved or base[0] <= _FAR or min(moved)[0] >= 0.5 * base[0]:
        return None
    return min(moved)[1]


def level(experiment: Experiment) -> float:
    """Where an experiment ended, in units of the constant predictor's loss; inf where it left the numbers."""
    tail = experiment.losses[-max(1, len(experiment.losses) // 5) :]
    if not tail or not all(map(math.isfinite, tail)):
        return math.inf
    return statistics.median(tail) / experiment.floor if experiment.floor else statistics.median(tail)
