"""Hand-made Flows for the rules' own healthy and sick cases: plain nets with a given loss per layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from unvanish import theory
from unvanish.types import Experiment, Flow, LossView, Moments, OptimizerView, Parameter, Site, Step

FLOOR = math.log(10)


def losses(stuck: bool) -> tuple[float, ...]:
    """Losses of 30 steps on ten classes: stuck at the constant predictor's loss, or falling to a tenth of it."""
    return tuple(FLOOR if stuck else FLOOR * math.exp(-step / 12) for step in range(30))


def training(stuck: bool, update_ratio: float = 1e-2) -> dict[str, Any]:
    """Steps and the overfitting experiment of a network that learns, or does not."""
    values = losses(stuck)
    steps = tuple(Step(i, value, 0.0, update_ratio, update_ratio) for i, value in enumerate(values))
    return {"steps": steps, "experiments": (Experiment("none", 1.0, values, FLOOR),)}


def plain(
    depth: int = 8,
    activation: str = "tanh",
    *,
    saturation: float = 0.0,
    weights: float = 0.0,
    saturated: float = 0.0,
    dead: float = 0.0,
    separation: float = 0.7,
    stuck: bool = False,
    **changes: Any,
) -> Flow:
    """A plain net of ``depth`` linear layers, each losing the given nats by saturation and by its weights."""
    reference = math.log(theory.small_signal_slope(activation))
    gradient = -(depth * (saturation + weights))
    sites: list[Site] = []
    for layer in range(depth):
        forward = Moments(64 * 32, 0.5, 0.0, 0.5 * separation)
        below = None if layer == 0 else gradient
        after = gradient + weights + reference
        order = len(sites)
        common: dict[str, Any] = {"shape": (64, 32), "forward": forward, "reference": reference}
        sites.append(
            Site(
                f"layers.{2 * layer}", "linear", "linear", order, depth=order + 1, log_grad_out=after,
                log_grad_in=below, parameter=f"layers.{2 * layer}.weight", inputs=(order - 1,) if order else (), **common,
            )
        )  # fmt: skip
        gradient = after + saturation - reference
        sites.append(
            Site(
                f"layers.{2 * layer + 1}", activation, "activation", order + 1, depth=order + 2, log_grad_out=gradient,
                log_grad_in=after, dead=dead, saturated=saturated, inputs=(order,), **common,
            )
        )  # fmt: skip
    flow = Flow(
        sites=tuple(sites),
        parameters=tuple(parameter(f"layers.{2 * i}.weight", log_weight=1 + 0.01 * i) for i in range(depth)),
        loss=LossView(FLOOR, "cross_entropy", FLOOR, 10, feeding="linear", reduction="mean"),
        optimizer=OptimizerView("SGD", (0.1,)),
        batch_size=64,
    )
    return replace(flow, **{**training(stuck), **changes})


def parameter(name: str, **changes: Any) -> Parameter:
    """A weight matrix that trains."""
    usual = Parameter(
        name, (32, 32), in_optimizer=True, used=True, log_grad=-2.0, log_weight=1.0, log_update=-4.0, unchanged=0.0,
        duplicate_rows=0.0,
    )  # fmt: skip
    return replace(usual, **changes)


def with_site(flow: Flow, index: int, **changes: Any) -> Flow:
    """The same Flow with one site changed."""
    sites = list(flow.sites)
    sites[index] = replace(sites[index], **changes)
    return replace(flow, sites=tuple(sites))


def lever(flow: Flow, name: str, factor: float = 1.0) -> Flow:
    """The same Flow with one more experiment, in which this lever made the network learn."""
    helped = Experiment(name, factor, losses(stuck=False), FLOOR)  # type: ignore[arg-type]
    return replace(flow, experiments=(*flow.experiments, helped))
