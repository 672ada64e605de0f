"""learning-rate-low: steps, or what clipping leaves of them, so small that nothing moves."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows, _words
from unvanish.types import Evidence, Experiment, Finding, Flow, OptimizerView, Step
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause

_LATER = "let the schedule fall later, or step it once per epoch, not per batch"


@dataclass(frozen=True)
class LearningRateLow(AbstractRule):
    """The optimizer's steps are so small that nothing moves: a tiny rate, a zero rate, a large eps, a tight clip.

    Gradients are sound and the weights still stand: updates below 1e-5 of the weights need 100,000 steps to matter.
    Usual reasons: a schedule that starts (or has ended) at 0, a rate copied from another optimizer, an Adam eps far above
    the gradients, clipping to a norm hundreds of times below the gradient's, `zero_grad()` between `backward()` and `step()`.
    Slow is not stuck: the verdict needs weights that were seen to stand, or the same network to learn clearly faster with a
    larger rate, tried on a copy.

    Cure: the learning rate times the factor that worked here; a schedule that does not start at 0; a looser clip.
    """

    stands: float = 1e-5  # 100,000 steps to matter
    frozen: float = 1e-6  # a million steps to matter
    steps: int = 20
    certain: int = 3
    eps: float = 1e-3
    idle: float = 0.06
    fades: float = 1e-4
    spent: float = 1e-3  # of the largest rate
    learnt: float = 0.3
    gradient: float = 1e-6
    update: float = 1e-3
    clip: float = 0.02
    moves: float = 0.2
    usual: ClassVar[dict[str, float]] = {"Adadelta": 1.0}
    cause: ClassVar[Cause] = "learning-rate-low"
    title: ClassVar[str] = "steps so small that nothing moves"
    source: ClassVar[str] = "Goodfellow et al. 2016, section 11.4.1; Bottou 2012, Stochastic gradient descent tricks"
    remedies: ClassVar[tuple[str, ...]] = (
        "raise the learning rate",
        "look at the schedule: does it start, or has it ended, at 0?",
        "look at the clipping: is the limit far below the usual norm?",
    )

    def check(self, flow: Flow) -> Finding | None:
        if flow.optimizer is None or not flow.optimizer.given or reading.converged(flow):
            return None
        rates = flow.optimizer.learning_rates
        standing = self._standing(flow, rates) or self._spent(flow) or self._clipped(flow)
        if standing is not None or reading.learns(flow):
            return standing
        if rates and max(rates) == 0:
            return self._finding(
                flow, 0.97, "The learning rate is 0 in every parameter group", "set a learning rate above 0"
            )
        ratio = reading.update_ratio(flow)
        smaller = reading.best_lever(flow, "eps")
        if smaller is not None and flow.optimizer.eps is not None:
            what = f"The optimizer's eps of {flow.optimizer.eps:.3g}, and not the gradient's size, divides the steps"
            return self._finding(flow, 0.92, what, "set eps back to 1e-8")
        if reading.best_lever(flow, "learning-rate-level") is not None:
            return self._uneven(flow, rates)
        helped = reading.best_lever(flow, "learning-rate", above=1.0)
        factor = reading.relieves(flow, "learning-rate", above=1.0) if helped is None else helped.factor
        if factor is None or ratio is None or ratio > self.update or reading.decline(flow) > self.moves:
            return None
        rate = max(rates) * factor
        proof = (
            "learns" if helped is not None else "more than halves its loss, which stands far above a constant answer's"
        )
        return self._finding(
            flow, 0.88, f"The learning rate {max(rates):.3g} is too low; with {rate:.2g} the same network {proof}",
            self._cure(flow, rate),
        )  # fmt: skip

    def _uneven(self, flow: Flow, rates: tuple[float, ...]) -> Finding:
        """Some groups have a rate far below that of the others: their weights stand."""
        standing = [
            p for p in reading.trainable(flow) if len(p.shape) > 1 and (p.log_update_ratio or 0) < math.log(self.stands)
        ]
        low, high = min(rates), max(rates)
        found = self._finding(
            flow, 0.9, f"A group of parameters has a learning rate of {low:.3g}, others have {high:.3g}; with {high:.3g} for all the "
            "same network learns", f"give all groups a rate near {high:.3g}",
        )  # fmt: skip
        return replace(found, where=(*found.where, *reading.modules(standing)))

    def _standing(self, flow: Flow, rates: tuple[float, ...]) -> Finding | None:
        """No weight moved in the training itself; what a copy can learn with its own steps does not count then."""
        largest = reading.largest_update(flow)
        if largest is None or largest >= self.stands or (reading.trains(flow) or 0.0) >= self.idle:
            return None
        left = [s.clip for s in flow.steps if s.clip is not None]
        gone = len(left) >= self.certain and max(left) == 0
        if len(flow.steps) < self.steps and not gone:
            return None
        if gone:
            what = "The gradients are gone when the optimizer steps"
            return self._finding(
                flow, 0.97, what, "call zero_grad() after step() or before backward(), not between them"
            )
        if left and statistics.median(left) < self.clip:
            return self._tight(flow, 0.93, left)
        if reading.largest_updates(flow)[0] > self.fades:
            what = "The learning rate falls to nothing before anything is learnt"
            return self._finding(flow, 0.93, what, _LATER)
        exact = not any(p.dtype in ("float16", "bfloat16") for p in flow.parameters)  # else rounding may hold them
        if rates and max(rates) == 0:
            what = "The learning rate is 0 in every parameter group"
            return self._finding(flow, 0.97, what, "set a learning rate above 0")
        if rates and largest < self.frozen and self._gradient(flow) > math.log(self.gradient) and exact:
            return self._finding(
                flow, 0.93, f"The learning rate {max(rates):.3g} is too low", "raise the learning rate"
            )
        return None

    def _spent(self, flow: Flow) -> Finding | None:
        """The rate fell to nothing when little was learnt, and most of the training came after that."""
        looks = [s for s in flow.steps if s.rate is not None]
        top = max((s.rate or 0.0 for s in looks), default=0.0)
        late = list(itertools.takewhile(lambda s: (s.rate or 0.0) <= self.spent * top, reversed(looks)))
        learnt = reading.trains(flow)
        if not late or 2 * late[-1].index > flow.steps[-1].index or learnt is None or learnt >= self.learnt:
            return None
        if (late[0].largest_update_ratio or 0.0) >= self.stands:
            return None
        what = f"By step {late[-1].index} the learning rate has fallen from {top:.3g} to {late[-1].rate:.2g}, and little is learnt"
        return self._finding(flow, 0.9, what, _LATER, late[0].update_ratio)

    def _clipped(self, flow: Flow) -> Finding | None:
        """What clipping leaves moves next to nothing.  A copy that learns one batch after a run was not clipped."""
        left = [s.clip for s in flow.steps if s.clip is not None]
        if not left or statistics.median(left) >= self.clip or (reading.update_ratio(flow) or 0.0) >= self.update:
            return None
        own = flow.origin == "run" and (reading.trains(flow) or 0.0) < self.idle
        if reading.learns(flow) and not own:
            return None
        return self._tight(flow, 0.9 if own else 0.85, left)

    def _tight(self, flow: Flow, confidence: float, left: list[float]) -> Finding:
        what = f"Clipping leaves {100 * statistics.median(left):.2g} % of the gradient"
        return self._finding(flow, confidence, what, "clip at a larger norm")

    @staticmethod
    def _gradient(flow: Flow) -> float:
        """ln of what arrives at the best-fed of the weights whose updates count; a bias of the head always gets some."""
        steps = [s.log_grad for s in flow.steps if s.log_grad is not None]
        weights = [p.log_grad for p in flow.parameters if len(p.shape) > 1 and p.log_grad is not None]
        return min(statistics.median(steps), max(weights)) if steps and weights else -math.inf

    def _cure(self, flow: Flow, rate: float) -> str:
        """What to change: an eps far above the usual 1e-8 divides the steps; Adadelta's own rate is 1."""
        assert flow.optimizer is not None, "a rate was moved"
        eps = flow.optimizer.eps or 0.0
        if flow.optimizer.adaptive and eps > self.eps:
            return f"set eps back to 1e-8: at {eps:.3g} it, and not the gradient, divides the steps"
        usual = self.usual.get(flow.optimizer.name, math.inf)
        return f"set the learning rate to {min(rate, max(usual, *flow.optimizer.learning_rates)):.2g}"

    def _finding(self, flow: Flow, confidence: float, what: str, remedy: str, ratio: float | None = None) -> Finding:
        ratio = (reading.update_ratio(flow) if ratio is None else ratio) or 0.0
        return Finding(
            cause=self.cause,
            where=("optimizer",),
            confidence=confidence,
            severity="high",
            evidence=(
                Evidence("update / weight in one step", ratio, "", "1e-3 to 1e-2"),
                *reading.learning_evidence(flow),
            ),
            message=f"{what}: one step changes the weights by {_words.share(ratio)} their size. Expected: 0.1 to 1 %. To mend it: {remedy}.",
            remedies=(remedy, *self.remedies[1:]),
            source=self.source,
        )

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        stuck = _flows.plain(stuck=True)
        still = tuple(Step(i, 0.1, -1.0, 1e-9, 1e-9) for i in range(60))
        done = _flows.plain()
        tight = tuple(replace(step, clip=1e-3) for step in done.steps)
        annealed = tuple(replace(s, rate=0.1 * (1 - i / len(done.steps)) ** 8) for i, s in enumerate(done.steps))
        return (
            done,
            replace(done, steps=annealed),
            replace(done, origin="run", steps=tight),
            replace(stuck, steps=_decaying(0.5)),
            stuck,
            _flows.lever(stuck, "learning-rate", 0.1),
            _flows.lever(stuck, "learning-rate", 10.0),
            replace(done, steps=still, loss=replace(done.loss, value=0.1)),  # it was converged before
            replace(stuck, steps=still[:10]),  # a warm-up, seen for some steps only
            replace(stuck, steps=tuple(Step(i, 2.3, -1.0, 1e-7, 3e-6) for i in range(60))),  # and no larger rate learns
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        stuck = _flows.plain(stuck=True)
        uneven = replace(stuck, optimizer=OptimizerView("SGD", (1e-7, 0.1)))
        still = replace(_flows.plain(), origin="run", steps=tuple(Step(i, 2.3, -1.0, 1e-12, 1e-12) for i in range(60)))
        crawling = tuple(Step(i, 2.3, -1.0, 1e-8, 3e-7) for i in range(60))
        slow = replace(_flows.plain(stuck=True), **_flows.training(stuck=True, update_ratio=1e-7))
        clipped = tuple(Step(i, 2.3, 0.0, 1e-6, 1e-6, clip=1e-3) for i in range(20))
        moving = tuple(replace(step, update_ratio=1e-5, largest_update_ratio=1e-4) for step in clipped)
        emptied = tuple(replace(step, clip=0.0, log_grad=-math.inf, largest_update_ratio=0.0) for step in still.steps)
        faded = tuple(replace(s, clip=1.0, largest_update_ratio=10.0 ** -(2 + s.index)) for s in still.steps)
        far = tuple(2.5 * _flows.FLOOR - 0.01 * i for i in range(30))
        nearer = tuple(_flows.FLOOR * (1 + math.exp(-i / 5)) for i in range(30))
        levels = [Experiment("none", 1.0, far, _flows.FLOOR), Experiment("learning-rate", 100.0, nearer, _flows.FLOOR)]
        return (
            replace(slow, experiments=tuple(levels)),
            _flows.lever(slow, "learning-rate", 1000.0),
            replace(slow, optimizer=OptimizerView("Adam", (0.0,))),
            replace(slow, steps=clipped),
            replace(_flows.plain(), origin="run", steps=moving),
            still,
            replace(still, steps=crawling),
            replace(still, steps=emptied),
            replace(still, steps=emptied[:4]),  # certain after a few
            replace(still, steps=faded),
            replace(stuck, steps=_decaying(0.03)),
            _flows.lever(uneven, "learning-rate-level"),
            _flows.lever(replace(slow, optimizer=OptimizerView("Adam", (1e-3,), 10.0, adaptive=True)), "eps", 1e-9),
        )


def _decaying(factor: float) -> tuple[Step, ...]:
    """Looks at 0, 1, 2, 5, ... of 160 steps in which nothing is learnt, the rate times so much after each 20."""
    looks = {0, 1, 2, 5, 10, 20, 50, 100}
    rates = [0.1 * factor ** (i // 20) for i in range(160)]
    ratios = [0.1 * rate for rate in rates]
    return tuple(
        Step(i, 2.3, -1.0, ratios[i], ratios[i], rate=rates[i]) if i in looks else Step(i, 2.3) for i in range(160)
    )
