"""learning-rate-high: steps so large that they destroy what they mean to improve."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _downfall, _flows, _words
from unvanish.types import Evidence, Experiment, Finding, Flow, OptimizerView, Snapshot, Step
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause


@dataclass(frozen=True)
class LearningRateHigh(AbstractRule):
    """The optimizer's steps are so large that they destroy what they mean to improve.

    Signs: the loss rises above its start, jumps, or becomes NaN after a few steps; single updates are as large as the
    weights (healthy: 1e-4 to 1e-2 of them); rectifiers die and bounded units saturate after the first steps.  A rising or
    jumping curve alone proves nothing: the verdict needs the same network to learn with a smaller rate, tried on a copy
    (one batch by heart; or, where that goes well and the training does not, on changing batches), or rectifiers that fired at the start and are dead after such steps.
    A schedule may also raise the rate after the network has learnt, and so undo it; a weight decay stronger than the
    gradients pulls all weights to zero.  Without `zero_grad()` every step is made with the sum of all gradients so far, and grows likewise at any rate.

    Cure: the learning rate times the factor that worked here; warm-up; clipping the gradient's norm; `zero_grad()`.
    """

    update: float = 0.3
    whole: float = 1.0
    steep: float = 0.7  # saturated units, of two looks on average, of which one may come after a step
    flat: float = 0.99
    stands: float = 1e-4
    good: float = 0.9
    far: float = 10.0  # times the first loss
    long: int = 50
    half: float = 0.5
    idle: float = 0.02
    alive: float = 0.5
    dead: float = 0.85
    heavy: float = 0.97
    looks: int = 3  # at gradients that were never taken away; one or two may be an accumulation over batches
    rush: float = 0.05  # of the weights' size, the median step
    begun: int = 10
    twice: int = 2
    many: int = 6  # such looks: no accumulation lasts as long
    cause: ClassVar[Cause] = "learning-rate-high"
    title: ClassVar[str] = "steps so large that they destroy what was learnt"
    source: ClassVar[str] = "LeCun et al. 1998, Efficient BackProp, section 4.7; Goodfellow et al. 2016, section 11.4.1"
    remedies: ClassVar[tuple[str, ...]] = (
        "lower the learning rate",
        "or warm it up over the first hundred steps",
        "and clip the gradient norm: clip_grad_norm_(parameters, 1.0)",
    )

    def check(self, flow: Flow) -> Finding | None:
        if flow.optimizer is not None and not flow.optimizer.given:
            return None
        if self._piles_up(flow):
            return self._never_zeroed(flow)
        shrunk = _downfall.decayed(flow)
        if shrunk is not None or _downfall.learns_without_decay(flow):
            return self._decayed(flow, shrunk)
        if (rates := _downfall.unlearnt(flow)) is not None:
            return self._unlearnt(flow, *rates)
        trained = reading.best_in_training(flow)
        if trained is not None:
            return self._finding(flow, trained.factor, 0.88, "the same network learns on changing batches")
        learns, largest = reading.learns(flow), reading.largest_first_update(flow)
        if largest > self.whole and self._flattened(flow):
            flat = (
                "after some steps of this size all bounded units of a layer are on their flat parts, and nothing moves"
            )
            return self._finding(flow, None, 0.82, flat)
        if largest > self.whole and reading.grew(flow.steps, self.far) and self._limps(flow):
            lost = "the first steps threw the loss far above its start, and it has not come to much since"
            return self._finding(flow, None, 0.8, lost)
        gets_on = (reading.trains(flow) or 0.0) >= self.idle and not self._limps(flow)
        if learns and (gets_on or largest < self.update):
            return None  # else one batch was learnt by heart, and the training comes to little
        helped = reading.best_lever(flow, "learning-rate", below=1.0)
        if helped is not None:
            return self._finding(flow, helped.factor, 0.9, "the same network learns")
        wild = largest > self.update and (reading.grew(flow.steps) or flow.nonfinite is not None)
        if wild and reading.relieves(flow, "learning-rate", below=1.0):
            return self._finding(flow, None, 0.82, "a smaller one keeps the loss from running away")
        if largest > self.update and self._killed(flow):
            dead = "rectifiers that fired at the start are dead after some steps of this size"
            return self._finding(flow, None, 0.82, dead)
        return None if flow.experiments else self._unproven(flow, wild=wild)

    def _unproven(self, flow: Flow, *, wild: bool) -> Finding | None:
        """What only the user's own training shows."""
        if self._rushes(flow):
            return self._finding(flow, None, 0.75, "steps stay as large, and little is learnt")
        return self._finding(flow, None, 0.7, "the loss runs away") if wild else None

    def _piles_up(self, flow: Flow) -> bool:
        """Was the gradient of the steps before still there at every step looked at, in a training that could go better?"""
        kept = [step.kept for step in flow.steps if step.kept is not None]
        seen, gone = sum(0 < share < math.inf for share in kept), reading.trains(flow) or 0.0
        if seen < self.looks or not all(kept):
            return False
        return self._goes_badly(flow) or (seen >= self.many and gone < self.good)

    @staticmethod
    def _goes_badly(flow: Flow) -> bool:
        return flow.nonfinite is not None or (reading.trains(flow) or 0.0) < reading.LEARNS

    def _never_zeroed(self, flow: Flow) -> Finding:
        shares = [step.kept for step in flow.steps if step.kept is not None and 0 < step.kept < math.inf]
        return self._told(
            confidence=0.93 if self._goes_badly(flow) else 0.75,
            evidence=(
                Evidence("gradient that stems from earlier steps", 100 * statistics.median(shares), "%", "0 %"),
                Evidence("largest update / weight in one step", reading.largest_first_update(flow), "", "1e-4 to 1e-2"),
            ),
            message=(
                "zero_grad() is missing: at every step looked at, .grad still held the gradients of all steps before, and "
                "backward() added to them; so the steps grow and overshoot whatever the learning rate. Expected: .grad is None or "
                "zero when the first backward() after a step begins. Call optimizer.zero_grad() after each step(), or "
                "before the backward() of the next."
            ),
            remedies=("call optimizer.zero_grad() once per step, before backward() or after step()",),
        )

    def _unlearnt(self, flow: Flow, taught: float, ruined: float) -> Finding:
        end = flow.steps[-1].loss
        return self._told(
            confidence=0.9,
            evidence=(
                Evidence("learning rate after it had learnt", ruined, "", f"near {taught:.3g}"),
                Evidence("last loss", end, "", f"below {flow.loss.floor:.4g} (guessing)"),
            ),
            message=(
                f"The learning rate rises to {ruined:.3g}, and destroys what the network had learnt at {taught:.3g}: its loss is back "
                "at that of a guess. Expected: rates of a schedule that do not exceed what the network learns at. Set what "
                "comes late (SWALR's swa_lr, a restart, max_lr) to about the rate of the training before."
            ),
            remedies=(f"keep the learning rate near {taught:.3g} to the end", *self.remedies[1:]),
        )

    def _decayed(self, flow: Flow, shrunk: float | None) -> Finding:
        """``shrunk``: how far the weights were seen to; None where the network was seen to learn without the decay."""
        assert flow.optimizer is not None, "its decay was seen"
        decay = flow.optimizer.weight_decay
        proof = "without it the same network learns"
        if shrunk is not None:
            proof = (
                f"they are {_words.times(shrunk)} times smaller than at the start, and the network has learnt nothing"
            )
        by = () if shrunk is None else (Evidence("weights before / weights now", shrunk, "", "0.5 to 2"),)
        return self._told(
            confidence=0.9,
            evidence=(*by, Evidence("weight decay", decay, "", "1e-5 to 1e-1")),
            message=(
                f"The optimizer's weight_decay of {decay:.3g} pulls all weights to zero: {proof}. "
                "Expected: a decay far weaker than the gradient. "
                f"Set weight_decay to 1e-4, or to 1e-2 in AdamW."
            ),
            remedies=("set weight_decay to 1e-4, or to 1e-2 in AdamW",),
        )

    def _killed(self, flow: Flow) -> bool:
        """Did most units of a rectifier that fired at the start never fire again?"""
        alive = {s.label for s in flow.sites if s.op in reading.RECTIFIERS and (s.dead or 0.0) < self.alive}
        later = [s for snapshot in flow.snapshots for s in snapshot.sites if s.label in alive]
        return any((s.dead or 0.0) >= self.dead for s in later)

    def _limps(self, flow: Flow) -> bool:
        """Is little gained at the end of the user's own, long training, on a loss that is nobody else's?"""
        own = flow.origin == "run" and not flow.others and len(flow.steps) >= self.long and flow.loss.floor is not None
        return own and (reading.trains(flow) or 0.0) < self.half

    def _rushes(self, flow: Flow) -> bool:
        """Do steps go on changing most weights by far more than is usual, in a training that comes to little?"""
        late = [step.update_ratio or 0.0 for step in flow.steps if step.index >= self.begun]
        return self._limps(flow) and sum(ratio > self.rush for ratio in late) >= self.twice

    def _flattened(self, flow: Flow) -> bool:
        """Did layers that stood on their slope at the start go flat altogether, so that the weights now stand?"""
        if (
            not flow.snapshots
            or reading.largest_updates(flow)[-1] >= self.stands
            or (reading.trains(flow) or 0.0) >= self.good
        ):
            return False
        steep = {s.label for s in flow.sites if s.saturated is not None and s.saturated < self.steep}
        return any(s.label in steep and (s.saturated or 0.0) >= self.flat for s in flow.snapshots[-1].sites)

    def _finding(self, flow: Flow, factor: float | None, confidence: float, proof: str) -> Finding:
        largest = reading.largest_first_update(flow)
        rates = flow.optimizer.learning_rates if flow.optimizer else ()
        rate = max(rates, default=float("nan"))
        proof = f"with {rate * factor:.2g} (times {factor:g}) {proof}" if factor else proof
        momentum = flow.optimizer.momentum if flow.optimizer else 0.0
        if self.heavy <= momentum < 1:
            proof += f"; a momentum of {momentum:g} makes {1 / (1 - momentum):.3g} times of it"
        return self._told(
            confidence=confidence,
            evidence=(
                Evidence("largest update / weight in one step", largest, "", "1e-4 to 1e-2"),
                *reading.learning_evidence(flow),
            ),
            message=(
                f"The learning rate {rate:.3g} is too high: {proof}; one step changed weights by {_words.share(largest)} their "
                "size. Expected: updates of 0.01 to 1 % of the weights. Lower the learning rate, or warm it up."
            ),
            remedies=(
                f"set the learning rate to {rate * factor:.2g}" if factor else "a tenth of the learning rate",
                *self.remedies[1:],
            ),
        )

    def _told(
        self, confidence: float, evidence: tuple[Evidence, ...], message: str, remedies: tuple[str, ...]
    ) -> Finding:
        return Finding(self.cause, ("optimizer",), confidence, "high", evidence, message, remedies, self.source)

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        return (
            _flows.plain(),
            _flows.plain(stuck=True),
            _flows.lever(_flows.plain(stuck=True), "learning-rate", 100.0),
            replace(_flows.plain(), steps=cls._kept(stuck=False, shares=(0.9, 0.9, 0.9))),  # it learns all the same
            cls._rushing(0.02),
            cls._limping(0.1, helped=True),  # its steps are small
            cls._limping(3.0, helped=False),
            replace(_flows.plain(), steps=cls._kept(stuck=False, shares=(0.9,) * 8) + _flows.plain().steps[-1:] * 10),
            replace(_flows.plain(), steps=cls._kept(stuck=False, shares=(0.9,) * 3)[:20]),  # is it an accumulation?
            replace(_flows.plain(stuck=True), steps=cls._kept(stuck=True, shares=(0.9, 0.0, 0.9, 0.9))),  # accumulated
            replace(_flows.plain(), steps=cls._scheduled(0.3)),
            replace(_flows.plain(), origin="run", steps=cls._thrown(0.1)),
            cls._shrunk(decay=1e-4),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        wild = tuple(Step(i, 2.3 * 3.0**i, 0.0, 2.0, 5.0) for i in range(10))
        seen = replace(_flows.plain(stuck=True), steps=wild, experiments=())
        fired = _flows.plain(activation="relu", stuck=True)
        killed = Snapshot(10, _flows.with_site(fired, 3, dead=0.95).sites, fired.parameters)
        struck = replace(fired, steps=(Step(0, 2.3, 0.0, 0.1, 0.6), *fired.steps[1:]), snapshots=(killed,))
        idle = replace(_flows.plain(), steps=_flows.plain(stuck=True).steps)
        leap, *steps = _flows.plain(stuck=True).steps
        still = [replace(step, largest_update_ratio=1e-6) for step in steps]
        flat = Snapshot(10, _flows.with_site(seen, 3, saturated=1.0).sites, seen.parameters)
        return (
            _flows.lever(_flows.plain(stuck=True), "learning-rate", 0.1),
            seen,
            struck,
            replace(_flows.plain(), origin="run", steps=cls._thrown(0.6)),
            cls._rushing(0.1),
            cls._limping(3.0, helped=True),
            replace(seen, steps=(replace(leap, largest_update_ratio=9.0), *still), snapshots=(flat,)),
            _flows.lever(idle, "learning-rate-in-training", 0.1),
            replace(_flows.plain(), steps=cls._kept(stuck=True, shares=(0.5, 0.7, 0.9))),
            replace(_flows.plain(), steps=cls._kept(stuck=False, shares=(0.9,) * 8)[:20]),
            replace(fired, steps=cls._scheduled(2.3)),
            cls._shrunk(decay=1.0),
            _flows.lever(
                replace(fired, optimizer=OptimizerView("Adam", (1e-3,), weight_decay=1.0)), "weight-decay", 0.0
            ),
        )

    @staticmethod
    def _thrown(end: float) -> tuple[Step, ...]:
        """Weights replaced by the first step, a loss a hundred times as large after it, which ends at so much of a guess."""
        leap = Step(0, 2.3, 0.0, 7.0, 8.0), Step(1, 230.0, 3.0, 0.8, 0.9)
        return (*leap, *(Step(i, end * 2.3, 0.0, 1e-2, 1e-2) for i in range(2, 80)))

    @staticmethod
    def _scheduled(end: float) -> tuple[Step, ...]:
        """A loss that falls at the rate 0.001, which is 0.5 in the second half."""
        first = [Step(i, 2.3 * 0.9**i, 0.0, 1e-2, 1e-2, rate=1e-3) for i in range(50)]
        return (*first, *(Step(i, end, 0.0, 1e-2, 1e-2, rate=0.5) for i in range(50, 100)))

    @staticmethod
    def _shrunk(decay: float) -> Flow:
        """Weights that are a hundredth of what they were, in a net that learns nothing."""
        base = _flows.plain(stuck=True)
        small = tuple(replace(p, log_weight=(p.log_weight or 0.0) - math.log(100)) for p in base.parameters)
        later = Snapshot(20, base.sites, small)
        return replace(base, optimizer=OptimizerView("Adam", (1e-3,), weight_decay=decay), snapshots=(later,))

    @staticmethod
    def _rushing(ratio: float) -> Flow:
        """A long training of the user's that comes to nothing; every tenth step was looked at."""
        steps = tuple(Step(i, _flows.FLOOR, 0.0, None if i % 10 else ratio) for i in range(100))
        return replace(_flows.plain(stuck=True), origin="run", steps=steps, experiments=())

    @staticmethod
    def _limping(ratio: float, *, helped: bool) -> Flow:
        """A long training that removes a fifth of guessing's loss, as one batch half learnt by heart; a smaller rate?"""
        steps = tuple(Step(i, (1 - i / 400) * _flows.FLOOR, 0.0, 1e-2, 1e-2 if i else ratio) for i in range(80))
        half = Experiment("none", 1.0, tuple((1 - i / 80) * _flows.FLOOR for i in range(40)), _flows.FLOOR)
        base = replace(_flows.plain(), origin="run", steps=steps, experiments=(half,))
        return _flows.lever(base, "learning-rate", 0.1) if helped else base

    @staticmethod
    def _kept(*, stuck: bool, shares: tuple[float, ...]) -> tuple[Step, ...]:
        """Steps of which the first later ones were looked at, and held so much of earlier gradients."""
        first, *steps = _flows.plain(stuck=stuck).steps
        seen = [replace(step, kept=share) for step, share in zip(steps, shares, strict=False)]
        return (first, *seen, *steps[len(shares) :])
