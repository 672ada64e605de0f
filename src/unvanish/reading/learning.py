"""Does the network learn? One batch learnt by heart, the training itself, and what guessing reaches."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

from unvanish.types import Evidence, Experiment, Flow

LEARNS = 0.4  # share of the constant predictor's loss that must be gone for "it learns"
_PROMPT = 40  # optimizer steps on one batch that a sound network of any depth gets by with
_AT_FLOOR = 0.06  # of the constant predictor's loss: batches differ by about as much
_LONG = 50  # steps of the user's own training that show whether it learns


def progress(flow: Flow) -> float | None:
    """Share of the constant predictor's loss removed: on one batch learnt by heart, else in the training seen.

    None where neither was tried: then no verdict about learning is possible.
    """
    tried = [e.progress for e in flow.experiments if e.lever == "none" and e.progress is not None]
    seen = Experiment("none", 1.0, tuple(step.loss for step in flow.steps), flow.loss.floor).progress
    known = [value for value in (*tried, seen) if value is not None]
    return max(known) if known else None


def trains(flow: Flow) -> float | None:
    """Share of the constant predictor's loss removed in the training itself, on changing batches; None if unseen."""
    return Experiment("none", 1.0, tuple(step.loss for step in flow.steps), flow.loss.floor).progress


def trains_at_length(flow: Flow) -> float | None:
    """The same of a training of the user's own that is long enough to show whether it learns; None of any other."""
    return trains(flow) if flow.origin == "run" and len(flow.steps) >= _LONG else None


def learns(flow: Flow) -> bool:
    """The network demonstrably learns as it is."""
    reached = progress(flow)
    return falls(flow) if reached is None else reached >= LEARNS


def learns_promptly(flow: Flow) -> bool:
    """As ``learns``, within the length of the training itself: adaptive steps wear down a lost gradient in the end."""
    tried = [e for e in flow.experiments if e.lever == "none"]
    soon = [replace(e, losses=e.losses[: max(_PROMPT, len(flow.steps))]).progress for e in tried]
    return (trains(flow) or 0.0) >= 0.1 or any((value or 0.0) >= LEARNS for value in soon)


def learnt_once(flow: Flow) -> bool:
    """Had the network as it is learnt one batch by heart at any time, whatever came of it after?"""
    tried = [e for e in flow.experiments if e.lever == "none"]
    begun = (replace(e, losses=e.losses[:end]) for e in tried for end in range(1, len(e.losses) + 1))
    return any((e.progress or 0.0) >= LEARNS for e in begun)


def falls(flow: Flow) -> bool:
    """Does the loss fall far beyond its own noise?  For losses without a bottom, which may be negative (policies).

    Far: the end lies three standard deviations of the first fifth below its mean.
    """
    losses = next((e.losses for e in flow.experiments if e.lever == "none"), ())
    fifth = len(losses) // 5
    if fifth < 3 or not all(map(math.isfinite, losses)):
        return False
    start, end = losses[:fifth], losses[-fifth:]
    return statistics.median(end) < statistics.mean(start) - 3 * statistics.stdev(start)


def decline(flow: Flow) -> float:
    """Share by which the loss fell while one batch was learnt by heart, whatever level it started from; 0 at least."""
    losses = next((e.losses for e in flow.experiments if e.lever == "none"), ())
    if len(losses) < 10 or not all(map(math.isfinite, losses)) or losses[0] <= 0:
        return 0.0
    return max(0.0, 1 - statistics.mean(losses[-5:]) / statistics.mean(losses[:5]))


def improves(flow: Flow) -> bool | None:
    """Was the network seen to learn at all, or was it converged from the start?  None where it was not tried.

    Of a long training of the user's own the end counts, whatever a copy could do on one batch.
    """
    reached = progress(flow)
    if reached is None:
        return falls(flow) if flow.experiments else None
    if converged(flow):
        return True
    own = trains_at_length(flow)
    if own is not None and flow.loss.floor is not None:
        return own >= 0.05
    return not at_floor(flow) and (reached >= 0.1 or (decline(flow) >= 0.1 and not _ends_at_floor(flow)))


def at_floor(flow: Flow) -> bool:
    """Does the training end where a prediction stands that ignores the input, with no batch learnt by heart?"""
    floor, reached = flow.loss.floor, progress(flow)
    if floor is None or reached is None or reached >= LEARNS or not flow.steps:
        return False
    return abs(flow.steps[-1].loss - floor) < _AT_FLOOR * floor


def _ends_at_floor(flow: Flow) -> bool:
    """Did the attempt to learn one batch by heart only come down to the constant predictor's loss, or not so far?"""
    floor, losses = flow.loss.floor, next((e.losses for e in flow.experiments if e.lever == "none"), ())
    late = losses[-max(1, len(losses) // 5) :]
    return floor is not None and floor > 0 and bool(late) and statistics.median(late) > (1 - _AT_FLOOR) * floor


def converged(flow: Flow) -> bool:
    """Was the loss far below the constant predictor's from the start?"""
    return flow.loss.floor is not None and flow.loss.value < 0.2 * flow.loss.floor


def learning_evidence(flow: Flow) -> tuple[Evidence, ...]:
    """The measured proof of how far the network learns, for a finding to show."""
    reached = progress(flow)
    if reached is None:
        return ()
    own = not any(e.lever == "none" for e in flow.experiments) or (trains(flow) or 0.0) >= reached > 0
    seen = "loss removed in training" if own else "one batch learnt by heart"
    shown = [Evidence(seen, 100 * reached, "%", "above 40 %")]
    if flow.loss.floor is not None and flow.steps:
        shown.append(Evidence("last loss", flow.steps[-1].loss, "", f"below {flow.loss.floor:.4g} (guessing)"))
    return tuple(shown)
