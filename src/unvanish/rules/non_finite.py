"""non-finite: a NaN or Inf was born."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows
from unvanish.types import Evidence, Finding, Flow, NonFinite, Site
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause

_HINTS = {
    "log": "keep its argument away from 0: log(x.clamp_min(eps)), or use log_softmax / logsigmoid",
    "sqrt": "keep its argument away from 0, where the slope is infinite: sqrt(x + eps)",
    "norm": "add eps under the root: the derivative of a norm is undefined at 0",
    "linalg_vector_norm": "add eps under the root: the derivative of a norm is undefined at 0",
    "div": "add eps to the divisor, or skip empty groups",
    "exp": "use logsumexp, softplus or a clamp: exp overflows float32 above 88",
    "pow": "clamp the base: it is 0 or negative",
    "softmax": "leave one entry in each masked row (a row is -inf everywhere), or zero such rows afterwards",
    "acos": "clamp inside (-1, 1): the slope is infinite at the ends",
}
_STEEP = ("sqrt", "std", "acos", "asin")  # finite where their slope is not
_GUARDS = ("add", "clamp", "clamp_min", "clamp_max")


@dataclass(frozen=True)
class NonFiniteRule(AbstractRule):
    """A NaN or Inf was born at one op; everything after it is lost, and so is every weight it reaches.

    One NaN spreads to all later values and, through the optimizer's averages, stays for ever.  The step is run again
    with every op checked: the culprit is the first op whose inputs were finite and whose output (or, going backward,
    whose passed-on gradient) is not.  Typical: log(0), sqrt'(0), 0/0 in a normalisation, exp above 88, a softmax over
    a row that is masked entirely, NaN in the data.

    Cure the op (eps, clamp, a fused stable version such as log_softmax), or clean the data.  Where plain products
    overflowed after the loss had grown, the NaN is only the end of an explosion: lower the learning rate or clip.
    """

    overflow_confidence: float = 0.6
    cause: ClassVar[Cause] = "non-finite"
    title: ClassVar[str] = "a NaN or Inf was born at one op"
    source: ClassVar[str] = "IEEE 754; Goldberg 1991, What every computer scientist should know about floating point"
    remedies: ClassVar[tuple[str, ...]] = (
        "repair the op that is named: eps, a clamp, or a fused version such as log_softmax",
        "drop or fill NaN and Inf in the data",
        "after an explosion: a lower learning rate, clip_grad_norm_(parameters, 1.0)",
    )

    def check(self, flow: Flow) -> Finding | None:
        born = flow.nonfinite
        if born is None:
            return None
        overflow = reading.overflowed(flow)
        steep = _steep(flow)
        if (
            born.direction == "parameter"
            and steep
            and not reading.grew([s for s in flow.steps if math.isfinite(s.loss)])
        ):
            return self._backwards(born, steep)
        hint = _HINTS.get(
            born.op.removeprefix("_"), "look at what goes into it (torch.autograd.detect_anomaly names the line)"
        )
        hint = "drop or fill these values before training" if born.direction == "input" else hint
        if born.direction == "parameter":
            hint = "lower the learning rate, and look at eps: float16 rounds 1e-8 to 0"
        return Finding(
            cause=self.cause,
            where=(born.where,),
            confidence=self.overflow_confidence if overflow else 0.98,
            severity="high",
            evidence=(Evidence("first non-finite value at step", born.step, "", "never"),),
            message=f"{self._event(born)}. Expected: finite values throughout. To mend it: {hint}.",
            remedies=(hint,),
            source=self.source,
        )

    def _backwards(self, born: NonFinite, steep: tuple[Site, ...]) -> Finding:
        """A finite loss, and weights that are not after its step, which nobody looked at: a gradient made them so."""
        hint = _HINTS.get(steep[0].op, _HINTS["sqrt"])
        return Finding(
            cause=self.cause,
            where=(*reading.names(steep), born.where),
            confidence=0.85,
            severity="high",
            evidence=(Evidence("first non-finite value at step", born.step, "", "never"),),
            message=(
                f"The weight {born.where} is NaN or Inf at step {born.step}, before which the loss was finite: its gradient was not. "
                f"`{steep[0].op}` at {steep[0].label} has an infinite slope where its input is 0 (or at the end of its range), and "
                f"nothing keeps it away from there. Expected: finite gradients throughout. To mend it: {hint}."
            ),
            remedies=(hint, "if it is another op: torch.autograd.detect_anomaly() names the line"),
            source=self.source,
        )

    @staticmethod
    def _event(born: NonFinite) -> str:
        detail = born.detail or "its inputs were finite"
        if born.direction == "input":
            return f"The data ({born.where}) hold NaN or Inf at step {born.step}: {detail}"
        if born.direction == "parameter":
            return f"The weight {born.where} is NaN or Inf at step {born.step}: an update made it so"
        return f"The first NaN or Inf is born in `{born.op}` at {born.where} ({born.direction} pass, step {born.step}); {detail}"

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        return (_flows.plain(), _flows.plain(stuck=True), _flows.plain(depth=30, weights=2.0))

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        log = NonFinite("loss", "log", "forward", 0, "its input was [64] in [0, 1]")
        data = NonFinite("input", "data", "input", 0, "3 of 640 values of tensor 0")
        late = NonFinite("layers.4", "sqrt", "backward", 12)
        ends = tuple(replace(_flows.plain(stuck=True), nonfinite=born) for born in (log, data, late))
        moved = replace(ends[0], nonfinite=NonFinite("layers.0.weight", "step", "parameter", 13))
        root = Site("", "sqrt", "other", len(moved.sites), (64,), inputs=(len(moved.sites) - 1,))
        return (*ends, moved, replace(moved, sites=(*moved.sites, root)))


def _steep(flow: Flow) -> tuple[Site, ...]:
    """Ops that may pass on an infinite gradient although all is finite going forward, with nothing before them to help."""
    ops = {site.order: site.op for site in flow.sites}
    return tuple(
        site for site in flow.sites if site.op in _STEEP and not any(ops.get(order) in _GUARDS for order in site.inputs)
    )
