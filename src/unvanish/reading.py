"""How to read a Flow: does it learn, where does the gradient fall, which lever helps.  Pure functions of numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from unvanish.types import Evidence, Experiment, Flow, Parameter, Site, Step, TimeProfile

LEARNS = 0.4  # share of the constant predictor's loss that must be gone for "it learns"
FALL = math.log(30)  # nats; smaller differences between first and last layer are met in every healthy net
# ops that are undefined or infinite somewhere inside the range of floats
UNDEFINED = (
    *("log", "log2", "log10", "log1p", "logit", "xlogy", "sqrt", "rsqrt", "reciprocal", "norm", "linalg_vector_norm"),
    *("div", "exp", "pow", "softmax", "log_softmax", "acos", "asin", "atanh", "acosh", "tan", "lgamma"),
    *("std", "var", "std_mean", "var_mean"),  # of one sample
)
_PROMPT = 40  # optimizer steps on one batch that a sound network of any depth gets by with
_AT_FLOOR = 0.06  # of the constant predictor's loss: batches differ by about as much
_LONG = 50  # steps of the user's own training that show whether it learns
_FAR = 1.5  # times the constant predictor's loss: more than the noise between batches
RECTIFIERS = ("relu", "relu6", "threshold", "clamp_min", "clamp", "hardswish", "hardshrink", "softshrink")


def progress(flow: Flow) -> float | None:
    """Share of the constant predictor's loss removed: on one batch learnt by heart, else in the training seen.

    None where neither was tried: then no verdict about learning is possible.
    """
    tried = [e.progress for e in flow.experiments if e.lever == "none" and e.progress is not None]
    seen = Experiment("none", 1.0, tuple(step.loss for step in flow.steps), flow.loss.floor).progress
    known = [value for value in (*tried, seen) if value is not None]
    return max(known) if known else None


def learns(flow: Flow) -> bool:
    """The network demonstrably learns as it is."""
    reached = progress(flow)
    return falls(flow) if reached is None else reached >= LEARNS


def learns_promptly(flow: Flow) -> bool:
    """As ``learns``, within the length of the training itself: adaptive steps wear down a lost gradient in the end."""
    tried = [e for e in flow.experiments if e.lever == "none"]
    soon = [replace(e, losses=e.losses[: max(_PROMPT, len(flow.steps))]).progress for e in tried]
    return (trains(flow) or 0.0) >= 0.1 or any((value or 0.0) >= LEARNS for value in soon)


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


def improves(flow: Flow) -> bool | None:
    """Was the network seen to learn at all, or was it converged from the start?  None where it was not tried.

    Of a long training of the user's own the end counts, whatever a copy could do on one batch.
    """
    reached = progress(flow)
    if reached is None:
        return falls(flow) if flow.experiments else None
    if converged(flow):
        return True
    own = trains(flow) if flow.origin == "run" and len(flow.steps) >= _LONG else None
    if own is not None and flow.loss.floor is not None:
        return own >= 0.05
    return not at_floor(flow) and (reached >= 0.1 or decline(flow) >= 0.1)


def at_floor(flow: Flow) -> bool:
    """Does the training end where a prediction stands that ignores the input, with no batch learnt by heart?"""
    floor, reached = flow.loss.floor, progress(flow)
    if floor is None or reached is None or reached >= LEARNS or not flow.steps:
        return False
    return abs(flow.steps[-1].loss - floor) < _AT_FLOOR * floor


def converged(flow: Flow) -> bool:
    """Was the loss far below the constant predictor's from the start?"""
    return flow.loss.floor is not None and flow.loss.value < 0.2 * flow.loss.floor


def best_lever(flow: Flow, lever: str, *, above: float = 0.0, below: float = math.inf) -> Experiment | None:
    """The experiment with this lever, and a factor in (above, below), that helped most, if it clearly helped.

    "Clearly": it removes at least 0.2 more of the constant predictor's loss than the unmoved program.
    """
    base = progress(flow) or 0.0
    helped = [
        e
        for e in flow.experiments
        if e.lever == lever and above < e.factor < below and (e.progress or 0.0) >= base + 0.2
    ]
    return max(helped, key=lambda e: e.progress or 0.0) if helped else None


def best_in_training(flow: Flow) -> Experiment | None:
    """The smaller learning rate that helped most on changing batches, if it removes at least 0.2 more of the loss."""
    base = trains(flow) or 0.0
    tried = [
        e for e in flow.experiments if e.lever == "learning-rate-in-training" and (e.progress or 0.0) >= base + 0.2
    ]
    return max(tried, key=lambda e: e.progress or 0.0) if tried else None


def relieves(flow: Flow, lever: str, *, below: float = math.inf) -> bool:
    """Does moving this lever (by a factor under ``below``) more than halve a loss far above the constant predictor's?

    A loss that only comes back to the constant predictor's has removed nothing of it, yet the lever was right.
    """
    base = [_level(e) for e in flow.experiments if e.lever == "none"]
    moved = [_level(e) for e in flow.experiments if e.lever == lever and e.factor < below]
    return bool(base and moved) and base[0] > _FAR and min(moved) < 0.5 * base[0]


def _level(experiment: Experiment) -> float:
    """Where an experiment ended, in units of the constant predictor's loss; inf where it left the numbers."""
    tail = experiment.losses[-max(1, len(experiment.losses) // 5) :]
    if not tail or not all(map(math.isfinite, tail)):
        return math.inf
    return statistics.median(tail) / experiment.floor if experiment.floor else statistics.median(tail)


def body(flow: Flow) -> tuple[Site, ...]:
    """Sites with weights, in forward order: where a gradient is worth something."""
    return tuple(s for s in flow.sites if s.kind in ("linear", "convolution", "recurrent"))


def activations(flow: Flow) -> tuple[Site, ...]:
    """Activation sites in forward order."""
    return tuple(s for s in flow.sites if s.kind == "activation")


def fall(flow: Flow) -> float | None:
    """Nats by which the gradient is smaller at the first weights than at the last (negative: it grows).

    Where skips carry the gradient, the best-fed of the first third counts: in a transformer query and key projections
    get next to nothing at the start, whatever stands behind them.  +inf where it is exactly zero at the first and not
    at the last; None where there is nothing to compare.
    """
    logs = [s.log_grad_out for s in body(flow) if s.log_grad_out is not None and not math.isnan(s.log_grad_out)]
    if len(logs) < 2 or logs[-1] == -math.inf:
        return None
    skips = any(s.kind == "merge" and s.op == "add" and len(s.inputs) > 1 for s in flow.sites)
    first = max(logs[: math.ceil(len(logs) / 3)]) if skips else logs[0]
    return logs[-1] - first


def losses_of(sites: Iterable[Site], part: str) -> dict[str, float]:
    """Finite S ("saturation") or B ("weights") per site label, largest kept where a label repeats."""
    found: dict[str, float] = {}
    for site in sites:
        value = site.saturation_loss if part == "saturation" else site.weight_loss
        if value is not None and math.isfinite(value):
            found[site.label] = max(value, found.get(site.label, -math.inf))
    return found


def outlier(losses: dict[str, float], excess: float = 1.5, share: float = 0.4) -> str | None:
    """The one label whose loss exceeds the median by ``excess`` nats and makes up ``share`` of all positive loss."""
    if len(losses) < 3:
        return None
    label, largest = max(losses.items(), key=lambda item: item[1])
    positive = sum(value for value in losses.values() if value > 0)
    middle = statistics.median(losses.values())
    return label if largest > middle + excess and largest > share * positive else None


def separation(flow: Flow) -> float | None:
    """What still tells samples apart after the last activation, as a share of the signal."""
    seen = [s.forward.separation for s in activations(flow) if s.forward is not None]
    known = [value for value in seen if value is not None]
    return known[-1] if known else None


def normalized(flow: Flow) -> bool:
    """Is there any normalisation, also one written by hand (an RMSNorm of plain ops divides by a root)?"""
    return any(s.kind == "normalization" or s.op == "rsqrt" or "norm" in s.name.lower() for s in flow.sites)


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


def largest_update(flow: Flow) -> float | None:
    """||update|| / ||weight|| of the weight that moved most, median over the steps looked at."""
    known = [step.largest_update_ratio for step in flow.steps if step.largest_update_ratio is not None]
    return statistics.median(known) if known else None


def last_parameters(flow: Flow) -> dict[str, Parameter]:
    """Parameters as they were at the latest look."""
    latest = flow.snapshots[-1].parameters if flow.snapshots else flow.parameters
    return {p.name: p for p in latest}


def names(sites: Iterable[Site]) -> tuple[str, ...]:
    """Labels without repeats, in order."""
    return tuple(dict.fromkeys(site.label for site in sites))


def grew(steps: Sequence[Step], factor: float = 3.0) -> bool:
    """Did the loss rise far above its start (or leave the numbers) during training?"""
    losses = [step.loss for step in steps]
    if len(losses) < 2:
        return False
    return not math.isfinite(losses[-1]) or max(losses[1:]) > factor * max(abs(losses[0]), 1e-12)


def decades(nats: float) -> float:
    """Natural logarithm to decades."""
    return nats / math.log(10)


def learning_evidence(flow: Flow) -> tuple[Evidence, ...]:
    """The measured proof that the network does not learn, for a finding to show."""
    reached = progress(flow)
    if reached is None:
        return ()
    shown = [Evidence("one batch learnt by heart", 100 * reached, "%", "above 40 %")]
    if flow.loss.floor is not None and flow.steps:
        shown.append(Evidence("last loss", flow.steps[-1].loss, "", f"below {flow.loss.floor:.4g} (guessing)"))
    return tuple(shown)


def trains(flow: Flow) -> float | None:
    """Share of the constant predictor's loss removed in the training itself, on changing batches; None if unseen."""
    return Experiment("none", 1.0, tuple(step.loss for step in flow.steps), flow.loss.floor).progress


def decline(flow: Flow) -> float:
    """Share by which the loss fell while one batch was learnt by heart, whatever level it started from; 0 at least."""
    losses = next((e.losses for e in flow.experiments if e.lever == "none"), ())
    if len(losses) < 10 or not all(map(math.isfinite, losses)) or losses[0] <= 0:
        return 0.0
    return max(0.0, 1 - statistics.mean(losses[-5:]) / statistics.mean(losses[:5]))


def plain_depth(flow: Flow) -> int:
    """Most weight layers in a row on the forward path without a sum or concatenation of two branches in between."""
    rows: dict[int, int] = {}
    for site in flow.sites:
        below = max((rows.get(order, 0) for order in site.inputs), default=0)
        joined = site.kind == "merge" and len(site.inputs) > 1
        rows[site.order] = 0 if joined else below + (site.kind in ("linear", "convolution"))
    return max(rows.values(), default=0)


def time_fall(profile: TimeProfile) -> float | None:
    """Nats the gradient loses from its largest time step to the early ones (negative: it grows towards the start).

    Trailing padding does not count.  +inf where the early steps get exactly nothing.
    """
    logs = profile.log_grads[: len(profile.log_grads) - profile.padded]
    if len(logs) < 4 or any(math.isnan(log) for log in logs):
        return None
    early, late = max(logs[: max(1, len(logs) // 4)]), max(logs[-max(1, len(logs) // 4) :])
    if late == -math.inf:
        return None
    return late - early


def with_feeders(flow: Flow, sites: Iterable[Site]) -> tuple[str, ...]:
    """Labels of these sites and of the weights that feed them: where the cure is applied."""
    by_order = {site.order: site for site in flow.sites}
    labels: list[str] = []
    for site in sites:
        feeding = [by_order[order] for order in site.inputs if order in by_order]
        labels += [f.label for f in feeding if f.kind in ("linear", "convolution", "normalization")]
        labels.append(site.label)
    return tuple(dict.fromkeys(labels))


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


def update_ratio(flow: Flow) -> float | None:
    """Median ||update|| / ||weight|| over the steps looked at."""
    known = [step.update_ratio for step in flow.steps if step.update_ratio is not None]
    return statistics.median(known) if known else None
