"""symmetry: units of a layer are copies of one another and stay so."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows, _words
from unvanish.types import Evidence, Finding, Flow, Parameter, Snapshot
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause


@dataclass(frozen=True)
class Symmetry(AbstractRule):
    """The units of a layer have equal weights and get equal gradients, so they stay copies of one another for ever.

    With all weights zero, or equal to one constant, or with copied rows, every unit computes the same and is corrected
    the same: a layer of 64 units works like one unit.  Norms look normal; only equal rows give it away.  A zero weight
    alone is no fault: a zero-initialised last layer, LoRA's B or ReZero's alpha break their symmetry with the first
    step, because their gradients differ from row to row; two zero matrices in a product never do.  Whole modules may be copies
    of one another, too: experts made by copy.deepcopy.  So the rows are compared again after steps that moved something.

    Cure: random initial weights (Xavier or He) for every hidden layer; zeros only for biases and for the last layer of
    a residual branch.
    """

    share: float = 0.75
    learnt: float = 0.8
    factors: int = 2
    cause: ClassVar[Cause] = "symmetry"
    title: ClassVar[str] = "units of a layer are copies of one another and stay so"
    source: ClassVar[str] = "Goodfellow et al. 2016, Deep Learning, section 8.4 (breaking symmetry)"
    remedies: ClassVar[tuple[str, ...]] = (
        "draw the weights at random: nn.init.xavier_uniform_ or nn.init.kaiming_normal_",
        "zeros only for biases and for the last layer of a residual branch",
    )

    def check(self, flow: Flow) -> Finding | None:
        if (reading.progress(flow) or 0.0) > self.learnt:
            return None
        return self._zero_product(flow) or self._clones(flow) or self._units(flow) or self._constants(flow)

    def _zero_product(self, flow: Flow) -> Finding | None:
        """Zero matrices behind zero matrices: the gradient of each has the other as a factor, and nothing ever moves."""
        matrices = [p for p in reading.trainable(flow) if len(p.shape) > 1]
        zero = [p for p in matrices if p.log_weight == -math.inf]
        if len(zero) < self.factors or any(p.log_grad != -math.inf for p in matrices):
            return None
        return self._finding(
            flow, zero, 0.95, Evidence("weights that are zero", len(zero), "", "one factor of each product"),
            f"{_words.count(len(zero), 'weight')} are zero and no trained matrix gets a gradient: in a product of two zero "
            "matrices each gets the other as its gradient, so neither ever moves. Expected: zeros in one factor only, as "
            "LoRA has them in B. Draw the other one at random.",
        )  # fmt: skip

    def _clones(self, flow: Flow) -> Finding | None:
        """Whole modules that are copies: weights of equal size that get gradients of equal size, and still do later."""
        after = reading.last_parameters(flow)
        alike: dict[tuple[object, ...], list[Parameter]] = defaultdict(list)
        for p in reading.trainable(flow):
            end = after.get(p.name, p)
            known = (p.log_weight, p.log_grad, end.log_weight, end.log_grad)
            if len(p.shape) > 1 and not p.constant and all(v is not None and math.isfinite(v) for v in known):
                alike[p.shape, *(round(v or 0.0, 9) for v in known)].append(p)
        groups = [group for group in alike.values() if len({p.module for p in group}) > 1]
        if not groups or not reading.moved(flow):
            return None
        copies = [p for group in groups for p in group]
        return self._finding(
            flow, copies, 0.93, Evidence("modules with the same weights and gradients", len(max(groups, key=len)), "", "1"),
            f"{_words.count(len(copies), 'module')} have the same weights, get the same gradients, and are still alike after "
            f"{len(flow.steps)} steps: they work like one. Expected: members that start apart. Initialise each of them anew; "
            "copy.deepcopy copies the random numbers too.",
        )  # fmt: skip

    def _finding(self, flow: Flow, weights: list[Parameter], sure: float, seen: Evidence, message: str) -> Finding:
        where = reading.modules(weights)
        evidence = (seen, *reading.learning_evidence(flow))
        return Finding(self.cause, where, sure, "high", evidence, message, self.remedies, self.source)

    def _units(self, flow: Flow) -> Finding | None:
        after = reading.last_parameters(flow)
        copies = [p for p in reading.trainable(flow) if self._copied(p) and self._copied(after.get(p.name, p))]
        if not copies or not reading.moved(flow):
            return None
        end = [after.get(p.name, p) for p in copies]
        what = "all zero" if all(map(self._zero, end)) else "constant" if all(p.constant for p in end) else "equal rows"
        rows = Evidence("rows equal to another row", 100 * max(p.duplicate_rows or 0 for p in copies), "%", "0 %")
        return self._finding(
            flow, copies, 0.96, rows,
            f"The weights of {_words.count(len(copies), 'layer')} are {what}, and are still so after "
            f"{len(flow.steps)} steps: their units compute the same and get the same gradient, so each layer works like one "
            "unit. Expected: random, different rows. Initialise hidden layers with Xavier or He.",
        )  # fmt: skip

    def _constants(self, flow: Flow) -> Finding | None:
        """Weights that all start as one number, which only biases tell apart, in a net that comes to little."""
        equal = [p for p in reading.trainable(flow) if self._copied(p) and p.constant and not self._zero(p)]
        own = reading.trains_at_length(flow)
        learnt = reading.learns(flow) if own is None else own >= reading.LEARNS
        if not equal or learnt:
            return None
        return self._finding(
            flow, equal, 0.9, Evidence("layers whose weights are all one number", len(equal), "", "0"),
            f"The weights of {_words.count(len(equal), 'layer')} all start as one number: only their biases tell the units "
            "apart, which get nearly the same gradients. Expected: random, different rows. Initialise hidden layers with "
            "Xavier or He.",
        )  # fmt: skip

    @staticmethod
    def _zero(p: Parameter) -> bool:
        return p.constant and p.log_weight is not None and p.log_weight < -80

    def _copied(self, p: Parameter) -> bool:
        return len(p.shape) > 1 and p.shape[0] > 1 and (p.duplicate_rows or 0.0) >= self.share

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        base = _flows.plain()
        zero = _flows.parameter("lora_b.weight", duplicate_rows=1.0, constant=True)
        moved = Snapshot(10, base.sites, (replace(zero, duplicate_rows=0.0, constant=False),))
        ones = _flows.parameter("layers.2.weight", duplicate_rows=1.0, constant=True)
        frozen = _flows.parameter("mask.weight", duplicate_rows=1.0, requires_grad=False)
        return (
            base,
            replace(base, parameters=(*base.parameters, zero), snapshots=(moved,)),
            replace(base, parameters=(*base.parameters, frozen)),
            replace(base, parameters=(*base.parameters, ones)),  # it learns all the same
            replace(_flows.plain(stuck=True), parameters=(*base.parameters, replace(ones, log_weight=-math.inf))),
            replace(base, parameters=(*base.parameters, zero), snapshots=()),  # no later look
            replace(base, parameters=(replace(zero, log_update=-math.inf),), snapshots=(Snapshot(1, (), (zero,)),)),
            replace(base, parameters=(*base.parameters, replace(zero, log_weight=-math.inf, log_grad=-math.inf))),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        copied = _flows.parameter("layers.2.weight", duplicate_rows=1.0, duplicate_gradient_rows=1.0, constant=True)
        still = Snapshot(10, base.sites, (replace(copied, constant=False),))
        beside = replace(base, parameters=(*base.parameters, copied))
        nothing = {"log_weight": -math.inf, "log_grad": -math.inf}
        factors = tuple(_flows.parameter(f"fc.lora_{name}", **nothing) for name in "ab")
        experts = tuple(_flows.parameter(f"experts.{k}.weight", log_weight=-1.7, log_grad=-3.1) for k in range(4))
        return (
            replace(base, parameters=(copied,), snapshots=(still,)),
            replace(beside, snapshots=(still,)),
            replace(beside, snapshots=(replace(still, parameters=(_flows.parameter("layers.2.weight"),)),)),
            replace(base, parameters=factors),
            replace(base, parameters=experts, snapshots=(Snapshot(10, base.sites, experts),)),
        )
