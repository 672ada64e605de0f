"""Where the gradient falls, and what the layers, activations and time steps lose of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from unvanish.types import Flow, Parameter, Site, TimeProfile

FALL = math.log(30)  # nats; smaller differences between first and last layer are met in every healthy net
_STRAIGHT = ("add", "sub", "neg", "mean", "sum", "avg_pool2d", "adaptive_avg_pool2d")
RECTIFIERS = ("relu", "relu6", "threshold", "clamp_min", "clamp", "hardswish", "hardshrink", "softshrink")


def body(flow: Flow) -> tuple[Site, ...]:
    """Sites with weights, in forward order: where a gradient is worth something.

    What a discriminator or a critic makes of the gradient on its way is no matter of the network before it.
    """
    others = tuple(f"{name}{end}" for name in flow.others for end in (".", ":"))
    sites = tuple(s for s in flow.sites if s.kind in ("linear", "convolution", "recurrent"))
    return tuple(s for s in sites if not f"{s.name}.".startswith(others)) if others else sites


def activations(flow: Flow) -> tuple[Site, ...]:
    """Activation sites in forward order."""
    return tuple(s for s in flow.sites if s.kind == "activation")


def linear(flow: Flow) -> bool:
    """Do layers stand one on the other with nothing between them that bends, so that they are as good as one?"""
    bends = [s for s in flow.sites if s.kind not in ("linear", "convolution", "loss")]
    weights = [s for s in flow.sites if s.kind in ("linear", "convolution")]
    stacked = any(s.order in upper.inputs for s in weights for upper in weights)
    return stacked and all(s.op in _STRAIGHT or s.order > weights[-1].order for s in bends)


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


def names(sites: Iterable[Site]) -> tuple[str, ...]:
    """Labels without repeats, in order; "model" for what the outermost module computes itself."""
    return tuple(dict.fromkeys(site.label or "model" for site in sites))


def modules(parameters: Iterable[Parameter]) -> tuple[str, ...]:
    """The modules that have these parameters, without repeats, in order."""
    return tuple(dict.fromkeys(parameter.module for parameter in parameters))


def below(sites: Iterable[Site]) -> dict[int, list[Site]]:
    """By the order of each site: those it reads."""
    by_order = {site.order: site for site in sites}
    return {order: [by_order[one] for one in site.inputs if one in by_order] for order, site in by_order.items()}


def descend(site: Site, below: Mapping[int, Sequence[Site]], until: Callable[[Site], bool]) -> Site:
    """The first site, from this one down, for which ``until`` holds or that reads more than one other, or none."""
    while not until(site) and len(site.inputs) == len(below[site.order]) == 1:
        site = below[site.order][0]
    return site


def with_feeders(flow: Flow, sites: Iterable[Site]) -> tuple[str, ...]:
    """Labels of these sites and of the weights that feed them: where the cure is applied."""
    feeding = below(flow.sites)
    labels: list[str] = []
    for site in sites:
        labels += [f.label for f in feeding[site.order] if f.kind in ("linear", "convolution", "normalization")]
        labels.append(site.label)
    return tuple(dict.fromkeys(labels))


def decades(nats: float) -> float:
    """Natural logarithm to decades."""
    return nats / math.log(10)
