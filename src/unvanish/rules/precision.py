"""precision: the number format is too coarse for the updates or too narrow for the gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows
from unvanish.types import Evidence, Finding, Flow, Parameter
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause

_LOW = ("float16", "bfloat16")


@dataclass(frozen=True)
class Precision(AbstractRule):
    """Weights in bfloat16 or float16 that cannot move, or float16 gradients that underflow to zero.

    bfloat16 has 8 bits of mantissa: an update below 0.2 % of its weight rounds to no update at all, so at learning rates
    below 1e-3 most weights stay bitwise unchanged although gradient and optimizer are right.  float16 holds nothing
    below 6e-8, so small gradients become exactly zero without loss scaling, and nothing above 65,504.  Read from the weights after a real step, and
    from the share of exact zeros in the gradients.

    Cure: keep master weights in float32 and compute in low precision (autocast); with float16 use a GradScaler;
    stochastic rounding or a larger learning rate for pure bfloat16.
    """

    unchanged: float = 0.6
    zeros: float = 0.8
    cause: ClassVar[Cause] = "precision"
    title: ClassVar[str] = "a number format too coarse, or too narrow"
    source: ClassVar[str] = (
        "Micikevicius et al. 2018, arXiv:1710.03740, section 3; Zamirai et al. 2021, arXiv:2010.06192"
    )
    remedies: ClassVar[tuple[str, ...]] = (
        "keep weights and optimizer in float32, and compute under torch.autocast",
        "with float16 scale the loss: torch.amp.GradScaler",
        "or bfloat16 with stochastic rounding of the updates",
    )

    def check(self, flow: Flow) -> Finding | None:
        return self._out_of_range(flow) or self._stuck_weights(flow) or self._underflow(flow)

    def _out_of_range(self, flow: Flow) -> Finding | None:
        """NaN or Inf in float16 that float32 does not have."""
        helped = reading.best_lever(flow, "float32")
        low = [p for p in reading.trainable(flow) if p.dtype == "float16"]
        if flow.nonfinite is None or helped is None or not low:
            return None
        born = flow.nonfinite
        return self._finding(
            flow, low, Evidence("loss removed by the same network in float32", 100 * (helped.progress or 0), "%", "the same"),
            f"A NaN or Inf is born in `{born.op}` at {born.where} in float16, whose range ends at 65,504 and starts at 6e-8; in "
            "float32 the same network learns. Expected: values within the range. Keep weights and optimizer in float32 and "
            "use autocast with a GradScaler, or use bfloat16.",
        )  # fmt: skip

    def _stuck_weights(self, flow: Flow) -> Finding | None:
        weights = [
            p for p in reading.trainable(flow) if p.dtype in _LOW and len(p.shape) > 1 and p.unchanged is not None
        ]
        stuck = [p for p in weights if (p.unchanged or 0) >= self.unchanged and p.log_grad not in (None, -math.inf)]
        rates = flow.optimizer.learning_rates if flow.optimizer is not None else (0.0,)
        tried = any(rate > 0 for rate in rates) or not rates  # some optimizers have none, nor has who steps by hand
        if not stuck or not tried or 2 * len(stuck) < len(weights) or (reading.trains(flow) or 0) > 0.3:
            return None
        share = sum(p.unchanged or 0 for p in stuck) / len(stuck)
        return self._finding(
            flow, stuck, Evidence("weights unchanged by one step", 100 * share, "%", "below 20 %"),
            f"{100 * share:.0f} % of the {stuck[0].dtype} weights are bitwise unchanged after an optimizer step: the update is "
            "below their rounding step. Expected: nearly all weights move. Keep the weights in float32 and use autocast, "
            "or use stochastic rounding.",
        )  # fmt: skip

    def _underflow(self, flow: Flow) -> Finding | None:
        scaled = any(step.scale for step in flow.steps)
        low = [p for p in reading.trainable(flow) if p.dtype == "float16" and len(p.shape) > 1]
        under = [p for p in low if (p.zero_gradient or 0) >= self.zeros]
        sites = [s for s in reading.body(flow) if s.dtype == "float16" and (s.zero_gradient or 0) >= self.zeros]
        helped = reading.best_lever(flow, "float32")
        if scaled or not (under or sites) or (reading.learns(flow) and helped is None):
            return None
        share = max([p.zero_gradient or 0 for p in under] + [s.zero_gradient or 0 for s in sites])
        names = under or [_flows.parameter(f"{s.label}.weight") for s in sites]
        return self._finding(
            flow, names, Evidence("float16 gradients exactly zero", 100 * share, "%", "below 30 %"),
            f"Up to {100 * share:.0f} % of the float16 gradients are exactly zero: they are below 6e-8, the smallest float16 number. "
            "Expected: no underflow. Scale the loss (torch.amp.GradScaler), or use bfloat16 or float32.",
        )  # fmt: skip

    def _finding(self, flow: Flow, weights: list[Parameter], evidence: Evidence, message: str) -> Finding:
        where = reading.modules(weights)
        proof = (evidence, *reading.learning_evidence(flow))
        return Finding(self.cause, (*where, "optimizer"), 0.93, "high", proof, message, self.remedies, self.source)

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        moving = _flows.parameter("fc.weight", dtype="bfloat16", unchanged=0.1)
        coarse = _flows.parameter("fc.weight", dtype="float32", unchanged=0.99)
        return (_flows.plain(parameters=(moving,), stuck=True), _flows.plain(parameters=(coarse,), stuck=True))

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        stuck = _flows.parameter("fc.weight", dtype="bfloat16", unchanged=0.98)
        under = _flows.parameter("fc.weight", dtype="float16", zero_gradient=0.97)
        return (_flows.plain(parameters=(stuck,), stuck=True), _flows.plain(parameters=(under,), stuck=True))
