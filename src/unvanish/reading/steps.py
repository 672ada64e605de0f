"""What the optimizer steps did to loss and weights."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from unvanish.types import Flow, Parameter, Step

_FIRST = 12  # steps
# ops that are undefined or infinite somewhere inside the range of floats
UNDEFINED = (
    *("log", "log2", "log10", "log1p", "logit", "xlogy", "sqrt", "rsqrt", "reciprocal", "norm", "linalg_vector_norm"),
    *("div", "exp", "pow", "softmax", "log_softmax", "acos", "asin", "atanh", "acosh", "tan", "lgamma"),
    *("std", "var", "std_mean", "var_mean"),  # of one sample
)


def trainable(flow: Flow) -> tuple[Parameter, ...]:
    """Parameters the user means to train."""
    return tuple(p for p in flow.parameters if p.requires_grad and p.in_optimizer is not False)


def moved(flow: Flow) -> bool:
    """Did a step change any weight before the latest look?  A schedule that starts at 0 changes none."""
    if not flow.snapshots:
        return False
    looks = (flow.parameters, *(snapshot.parameters for snapshot in flow.snapshots[:-1]))
    updates = [p.log_update for parameters in looks for p in parameters]
    return any(update is not None and update > -math.inf for update in updates)


def largest_updates(flow: Flow) -> list[float]:
    """||update|| / ||weight|| of the weight that moved most, at each step looked at."""
    return [step.largest_update_ratio for step in flow.steps if step.largest_update_ratio is not None]


def largest_update(flow: Flow) -> float | None:
    """||update|| / ||weight|| of the weight that moved most, median over the steps looked at."""
    known = largest_updates(flow)
    return statistics.median(known) if known else None


def largest_first_update(flow: Flow) -> float:
    """The largest update of a weight in the first steps, as a share of the weight; 0 where none was seen."""
    return max((step.largest_update_ratio or 0.0 for step in flow.steps[:_FIRST]), default=0.0)


def update_ratio(flow: Flow) -> float | None:
    """Median ||update|| / ||weight|| over the steps looked at."""
    known = [step.update_ratio for step in flow.steps if step.update_ratio is not None]
    return statistics.median(known) if known else None


def last_parameters(flow: Flow) -> dict[str, Parameter]:
    """Parameters as they were at the latest look."""
    latest = flow.snapshots[-1].parameters if flow.snapshots else flow.parameters
    return {p.name: p for p in latest}


def grew(steps: Sequence[Step], factor: float = 3.0) -> bool:
    """Did the loss rise far above its start (or leave the numbers) during training?"""
    losses = [step.loss for step in steps]
    if len(losses) < 2:
        return False
    return not math.isfinite(losses[-1]) or max(losses[1:]) > factor * max(abs(losses[0]), 1e-12)


def overflowed(flow: Flow) -> bool:
    """A NaN or Inf was born where plain arithmetic left its range: the end of a growth, not a bug in one op.

    Ops that are undefined somewhere (log, sqrt, a divisor of 0) are bugs of their own, unless the loss grew before.
    """
    born = flow.nonfinite
    if born is None or born.direction in ("input", "parameter"):
        return False
    finite = [step.loss for step in flow.steps if math.isfinite(step.loss)]
    grown = len(finite) > 1 and max(finite[1:]) > 10 * max(abs(finite[0]), 1e-12)
    return grown or born.op not in UNDEFINED
