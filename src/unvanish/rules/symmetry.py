"""symmetry: units of a layer are copies of one another and stay so."""

from __future__ import annotations

import math
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
    step, because their gradients differ from row to row.  So the rows are compared again after steps that moved something.

    Cure: random initial weights (Xavier or He) for every hidden layer; zeros only for biases and for the last layer of
    a residual branch.
    """

    share: float = 0.75
    cause: ClassVar[Cause] = "symmetry"
    title: ClassVar[str] = "units of a layer are copies of one another and stay so"
    source: ClassVar[str] = "Goodfellow et al. 2016, Deep Learning, section 8.4 (breaking symmetry)"
    remedies: ClassVar[tuple[str, ...]] = (
        "draw the weights at random: nn.init.xavier_uniform_ or nn.init.kaiming_normal_",
        "zeros only for biases and for the last layer of a residual branch",
    )

    def check(self, flow: Flow) -> Finding | None:
        after = reading.last_parameters(flow)
        copies = [p for p in reading.trainable(flow) if self._copied(p) and self._copied(after.get(p.name, p))]
        if not copies or not reading.moved(flow) or (reading.progress(flow) or 0.0) > 0.8:
            return None
        end = [after.get(p.name, p) for p in copies]
        what = "all zero" if all(map(self._zero, end)) else "constant" if all(p.constant for p in end) else "equal rows"
        return Finding(
            cause=self.cause,
            where=tuple(dict.fromkeys(p.name.rpartition(".")[0] or p.name for p in copies)),
            confidence=0.96,
            severity="high",
            evidence=(
                Evidence("rows equal to another row", 100 * max(p.duplicate_rows or 0 for p in copies), "%", "0 %"),
                *reading.learning_evidence(flow),
            ),
            message=(
                f"The weights of {_words.count(len(copies), 'layer')} are {what}, and are still so after "
                f"{len(flow.steps)} steps: their units compute the same and get the same gradient, so each layer works like one "
                "unit. Expected: random, different rows. Initialise hidden layers with Xavier or He."
            ),
            remedies=self.remedies,
            source=self.source,
        )

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
        frozen = _flows.parameter("mask.weight", duplicate_rows=1.0, requires_grad=False)
        return (
            base,
            replace(base, parameters=(*base.parameters, zero), snapshots=(moved,)),
            replace(base, parameters=(*base.parameters, frozen)),
            replace(base, parameters=(*base.parameters, zero), snapshots=()),  # no later look
            replace(base, parameters=(replace(zero, log_update=-math.inf),), snapshots=(Snapshot(1, (), (zero,)),)),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        copied = _flows.parameter("layers.2.weight", duplicate_rows=1.0, duplicate_gradient_rows=1.0, constant=True)
        still = Snapshot(10, base.sites, (replace(copied, constant=False),))
        beside = replace(base, parameters=(*base.parameters, copied))
        return (replace(base, parameters=(copied,), snapshots=(still,)), replace(beside, snapshots=(still,)))
