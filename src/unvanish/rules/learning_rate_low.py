"""learning-rate-low: steps, or what clipping leaves of them, so small that nothing moves."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows, _words
from unvanish.types import Evidence, Finding, Flow, OptimizerView, Step
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause


@dataclass(frozen=True)
class LearningRateLow(AbstractRule):
    """The optimizer's steps are so small that nothing moves: a tiny rate, a zero rate, a large eps, a tight clip.

    Gradients are sound and the weights still stand: updates below 1e-5 of the weights need 100,000 steps to matter.
    Usual reasons: a schedule that starts (or has ended) at 0, a rate copied from another optimizer, an Adam eps far above
    the gradients, clipping to a norm hundreds of times below the gradient's.  Slow is not stuck: the verdict needs the
    same network to learn clearly faster with a larger rate, tried on a copy.

    Cure: the learning rate times the factor that worked here; a schedule that does not start at 0; a looser clip.
    """

    update: float = 1e-3
    clip: float = 0.02
    moves: float = 0.2
    cause: ClassVar[Cause] = "learning-rate-low"
    title: ClassVar[str] = "steps so small that nothing moves"
    source: ClassVar[str] = "Goodfellow et al. 2016, section 11.4.1; Bottou 2012, Stochastic gradient descent tricks"
    remedies: ClassVar[tuple[str, ...]] = (
        "raise the learning rate",
        "look at the schedule: does it start, or has it ended, at 0?",
        "look at the clipping: is the limit far below the usual norm?",
    )

    def check(self, flow: Flow) -> Finding | None:
        if reading.learns(flow) or flow.optimizer is None or not flow.optimizer.given:
            return None
        rates = flow.optimizer.learning_rates
        if rates and max(rates) == 0:
            return self._finding(
                flow, 0.97, "The learning rate is 0 in every parameter group", "set a learning rate above 0"
            )
        clips = [s.clip for s in flow.steps if s.clip is not None]
        ratio = reading.update_ratio(flow)
        if clips and statistics.median(clips) < self.clip and (ratio or 0) < self.update:
            left = statistics.median(clips)
            return self._finding(
                flow, 0.85, f"Clipping leaves {100 * left:.2g} % of the gradient", "clip at a larger norm"
            )
        helped = reading.best_lever(flow, "learning-rate", above=1.0)
        if helped is None or ratio is None or ratio > self.update or reading.decline(flow) > self.moves:
            return None
        rate = max(rates) * helped.factor
        return self._finding(
            flow, 0.88, f"The learning rate {max(rates):.3g} is too low; with {rate:.2g} the same network learns",
            f"set the learning rate to {rate:.2g}",
        )  # fmt: skip

    def _finding(self, flow: Flow, confidence: float, what: str, remedy: str) -> Finding:
        ratio = reading.update_ratio(flow) or 0.0
        return Finding(
            cause=self.cause,
            where=("optimizer",),
            confidence=confidence,
            severity="high",
            evidence=(
                Evidence("update / weight in one step", ratio, "", "1e-4 to 1e-2"),
                *reading.learning_evidence(flow),
            ),
            message=f"{what}: one step changes the weights by {_words.share(ratio)} their size. Expected: 0.01 to 1 %. To mend it: {remedy}.",
            remedies=(remedy, *self.remedies[1:]),
            source=self.source,
        )

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        stuck = _flows.plain(stuck=True)
        return (
            _flows.plain(),
            stuck,
            _flows.lever(stuck, "learning-rate", 0.1),
            _flows.lever(stuck, "learning-rate", 10.0),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        slow = replace(_flows.plain(stuck=True), **_flows.training(stuck=True, update_ratio=1e-7))
        clipped = tuple(Step(i, 2.3, 0.0, 1e-6, 1e-6, clip=1e-3) for i in range(20))
        return (
            _flows.lever(slow, "learning-rate", 1000.0),
            replace(slow, optimizer=OptimizerView("Adam", (0.0,))),
            replace(slow, steps=clipped),
        )
