"""input-scale: raw inputs or targets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows
from unvanish.rules._drowned import drowned, flow_with_code
from unvanish.types import Evidence, Experiment, Finding, Flow, InputView, LossView, Moments
from unvanish.units import AbstractRule
from unvanish.vocabulary import DISTANCES, Cause


@dataclass(frozen=True)
class InputScale(AbstractRule):
    """The network is fed with raw numbers, or asked for raw numbers, of a scale its weights are not made for.

    Initialisations assume inputs of mean 0 and standard deviation about 1.  Pixels of 0..255, incomes, ids or
    unscaled features saturate or kill the first layer, and features of unequal scale make the loss a narrow valley in
    which no learning rate fits.  Targets in the thousands ask for weights in the thousands: the optimizer needs
    thousands of steps only to reach their mean.  Confirmed by an experiment: the same network learns one batch by
    heart once inputs (or targets) are standardised.  A normalisation layer before the first weights makes raw inputs
    harmless.

    Inputs that are one and the same for all samples (a file that failed to load, a scale of 0) hold nothing to learn from.

    Inside of the network it is the same where a position code, a time step or an offset, which do not differ between
    samples, is added to a signal far smaller.

    Cure: standardise per feature, (x - mean) / std over the training set; divide pixels by 255; take logs of long-tailed
    quantities; scale regression targets and scale predictions back.
    """

    largest_rms: float = 8.0
    smallest_rms: float = 0.03
    spread: float = 50.0
    offset: float = 5.0
    same: float = 0.02  # of the inputs' size, what differs between samples
    target_rms: float = 20.0
    gross: float = 100.0
    gross_target: float = 1000.0
    far: float = 10.0
    grows: float = 0.01
    beyond: float = 1e4
    trained: float = 0.1
    flat: float = 0.95
    told: float = 0.01
    enough: float = 0.9
    cause: ClassVar[Cause] = "input-scale"
    title: ClassVar[str] = "raw inputs or raw targets"
    source: ClassVar[str] = "LeCun et al. 1998, Efficient BackProp, section 4.3"
    remedies: ClassVar[tuple[str, ...]] = (
        "standardise the inputs: (x - mean) / std per feature, of the training set",
        "standardise regression targets, and scale predictions back",
        "or put a BatchNorm or LayerNorm before the first layer",
    )

    def check(self, flow: Flow) -> Finding | None:
        if flow.nonfinite is not None and flow.nonfinite.direction == "input":
            return None
        return self._alike(flow) or self._inputs(flow) or self._targets(flow) or self._drowned(flow)

    def _alike(self, flow: Flow) -> Finding | None:
        """Nothing in the inputs tells one sample from another."""
        seen = [view.moments for view in flow.inputs if view.moments is not None]
        spreads = [m.batch_std for m in seen if m.batch_std is not None and m.rms < math.inf]
        same = bool(spreads) and len(spreads) == len(flow.inputs) == len(seen) and not any(spreads)
        if not same or reading.learns(flow):
            return None
        return Finding(
            cause=self.cause,
            where=("input",),
            confidence=0.95,
            severity="high",
            evidence=(
                Evidence("standard deviation over the batch", 0.0, "", "about 1"),
                *reading.learning_evidence(flow),
            ),
            message=(
                "All samples of the batch are the same: the inputs do not differ from one row to the next, so no network can "
                "tell them apart. Expected: another input for each sample. Print two rows of a batch, and look at how "
                "they are loaded, scaled and masked."
            ),
            remedies=("look at the data: print two rows of a batch as the network gets it",),
            source=self.source,
        )

    def _inputs(self, flow: Flow) -> Finding | None:
        odd = [view for view in flow.inputs if self._odd(view)]
        beyond = bool(odd) and (self._beyond(flow, odd[0]) or (self._gross(odd[0]) and self._falls_only(flow)))
        if not odd or ((reading.progress(flow) or 0.0) >= self.enough and not beyond):
            return None
        view, helped = odd[0], reading.best_lever(flow, "inputs-standardized")
        relieved = reading.relieves(flow, "inputs-standardized")
        fine = reading.learns(flow) and not self._slow(flow)
        tried = any(e.lever == "inputs-standardized" for e in flow.experiments)
        alone = not (tried and not self._gross(view)) and self._stressed(flow) and not fine
        blinded = self._gross(view) and self._blinded(flow)
        if helped is None and not relieved and not alone and not beyond and not blinded:
            return None
        assert view.moments is not None, "only measured inputs are odd"
        return Finding(
            cause=self.cause,
            where=("input",),
            confidence=0.95 if helped else 0.93 if relieved else 0.9 if self._gross(view) else 0.7,
            severity="high",
            evidence=(
                Evidence(f"{view.name} rms", view.moments.rms, "", "about 1"),
                Evidence(f"{view.name} mean", view.moments.mean, "", "about 0"),
                *([Evidence("largest / smallest feature std", view.feature_spread, "", "below 20")] if view.feature_spread else []),
                *reading.learning_evidence(flow),
                *([Evidence("the same with standardised inputs", 100 * (helped.progress or 0), "%", "above 40 %")] if helped else []),
            ),
            message=(
                f"The inputs are raw: rms {view.moments.rms:.3g}, mean {view.moments.mean:.3g}"
                + (f", feature scales apart by {view.feature_spread:.3g}" if view.feature_spread else "")
                + ". Expected: mean 0 and standard deviation 1 per feature. Standardise them with the training set's mean "
                "and standard deviation."
            ),
            remedies=("standardise the inputs", "put a BatchNorm or LayerNorm before the first layer"),
            source=self.source,
        )  # fmt: skip

    def _stressed(self, flow: Flow) -> bool:
        """Units driven to their flat parts, or a loss far above what guessing reaches."""
        flat = any((s.saturated or 0) > 0.8 or (s.dead or 0) > 0.8 for s in reading.activations(flow))
        flat = flat or any(s.log_grad_in == -math.inf for s in flow.sites if s.kind == "recurrent")  # all gates shut
        floor = flow.loss.floor
        return flat or (floor is not None and not flow.loss.value < self.far * floor)

    def _blinded(self, flow: Flow) -> bool:
        """Is the first activation flat for nearly all, and does it tell samples apart no more?  What is learnt, is without."""
        first = reading.activations(flow)[:1]
        flat = [s for s in first if (s.saturated or 0.0) >= self.flat and s.forward is not None]
        told = [s.forward.separation for s in flat if s.forward is not None]
        return any(one is not None and one < self.told for one in told) and (reading.trains(flow) or 0.0) < self.enough

    def _beyond(self, flow: Flow, view: InputView) -> bool:
        """A loss without a known bottom that is far above all that the inputs hold; from there any fall looks large."""
        assert view.moments is not None, "only measured inputs are odd"
        energy = view.moments.rms**2 * view.moments.count / (flow.batch_size or 1)
        return flow.loss.floor is None and flow.loss.value > self.beyond * max(1.0, energy)

    def _falls_only(self, flow: Flow) -> bool:
        """Is a fall from the height to which raw numbers throw a loss without a known bottom all there is to see?"""
        first = reading.activations(flow)[:1]
        flat = any((s.saturated or 0.0) >= self.flat for s in first)
        return flat and flow.loss.kind == "other" and flow.loss.floor is None and flow.loss.value > self.beyond

    def _slow(self, flow: Flow) -> bool:
        """In training, on changing batches, next to nothing of the constant predictor's loss is removed."""
        trained = reading.trains(flow)
        return trained is not None and trained < self.trained

    def _gross(self, view: InputView) -> bool:
        """A scale that no usual initialisation is meant for, whatever the experiments say."""
        rms = view.moments.rms if view.moments is not None else 1.0
        return max(rms, view.largest_feature_rms or 0.0) > self.gross

    def _odd(self, view: InputView) -> bool:
        if view.moments is None or view.normalized_first or view.moments.nonfinite:
            return False
        rms, mean, std = view.moments.rms, view.moments.mean, view.moments.batch_std
        spread = (view.feature_spread or 1.0) > self.spread and (view.largest_feature_rms or 0) > self.largest_rms
        offset = std is not None and ((abs(mean) > self.offset * std and rms > 2) or std < self.same * rms)
        return rms > self.largest_rms or 0 < rms < self.smallest_rms or spread or offset

    def _targets(self, flow: Flow) -> Finding | None:
        target = flow.loss.target
        if target is None or not target.rms > self.target_rms or not self._distance(flow, target):  # NaN is not raw
            return None
        if (reading.progress(flow) or 0.0) >= self.enough:
            return None
        helped = reading.best_lever(flow, "targets-standardized")
        relieved, gross = reading.relieves(flow, "targets-standardized"), target.rms > self.gross_target
        if helped is None and not relieved and reading.learns(flow) and not (gross and self._slow(flow)):
            return None
        return Finding(
            cause=self.cause,
            where=("loss", "target"),
            confidence=0.94 if helped else 0.92 if relieved else 0.88 if gross else 0.65,
            severity="high",
            evidence=(
                Evidence("target rms", target.rms, "", "about 1"),
                Evidence("target mean", target.mean, "", "about 0"),
                *reading.learning_evidence(flow),
                *(
                    [Evidence("the same with standardised targets", 100 * (helped.progress or 0), "%", "above 40 %")]
                    if helped
                    else []
                ),
            ),
            message=(
                f"The targets are raw: rms {target.rms:.3g}, mean {target.mean:.3g}. Expected: mean 0 and standard deviation 1, "
                "which the network's outputs have at the start. Standardise the targets (or take their logarithm) and "
                "scale predictions back."
            ),
            remedies=("standardise the targets", "predict their logarithm"),
            source=self.source,
        )

    def _drowned(self, flow: Flow) -> Finding | None:
        found = None if reading.learns(flow) else drowned(flow)
        if found is None:
            return None
        told, place, name = 100 * found.after, found.at.label, found.signal.label
        return Finding(
            cause=self.cause,
            where=reading.names((found.signal, found.at)),
            confidence=0.85,
            severity="high",
            evidence=(
                Evidence("what differs between samples, before the sum", 100 * found.before, "%", "above 20 %"),
                Evidence("the same after it", told, "%", "above 5 %"),
                *reading.learning_evidence(flow),
            ),
            message=(
                f"What is added to {name} is the same for all samples, and so much larger that {told:.2g} % of the sum at {place} "
                "still differs between them. Expected: both of one size. Make what is added smaller (a position code of the "
                f"embeddings' size), or multiply {name} by the square root of its width."
            ),
            remedies=(f"scale {name} up, or what is added to it down, to one size", "or concatenate the two"),
            source="Vaswani et al. 2017, arXiv:1706.03762, section 3.4",
        )

    def _distance(self, flow: Flow, target: Moments) -> bool:
        """Are predictions compared with the targets' numbers?  So they are in a loss by hand (quantiles) that is as large."""
        if flow.loss.kind in DISTANCES:
            return True
        raw = flow.loss.kind == "other" and target.rms > self.gross_target
        return raw and flow.loss.value > self.grows * target.rms

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        usual = InputView("input", (64, 8), "float32", Moments(512, 1.0, 0.0, 1.0, 3.0), 1.2, 1.1)
        raw = InputView("input", (64, 8), "float32", Moments(512, 90.0, 60.0, 60.0, 255.0), 3.0, 100.0)
        return (
            _flows.plain(inputs=(usual,), stuck=True),
            _flows.plain(inputs=(replace(raw, normalized_first=True),), stuck=True),
            _flows.plain(inputs=(InputView("input", (64, 12), "int64"),), stuck=True),
            _flows.plain(inputs=(usual, cls._constant()), stuck=True),
            _flows.plain(inputs=(cls._constant(),)),
            flow_with_code(0.1),
            replace(flow_with_code(0.004), experiments=_flows.plain().experiments),
        )

    @staticmethod
    def _constant() -> InputView:
        return InputView("input", (64, 8), "float32", Moments(512, 1.0, 0.2, 0.0, 3.0))

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        raw = InputView("input", (64, 8), "float32", Moments(512, 900.0, 600.0, 600.0, 2550.0), 800.0, 2000.0)
        stuck = _flows.plain(inputs=(raw,), stuck=True)
        values = Experiment("none", 1.0, (_flows.FLOOR, *(0.3 * _flows.FLOOR,) * 39), _flows.FLOOR)
        by_heart = replace(stuck, experiments=(values,))
        prices = LossView(4e10, "mse", 1e10, target=Moments(64, 2e5, 1.8e5, 8e4, 5e5), target_range=(2e4, 5e5))
        near = InputView("input", (64, 8), "float32", Moments(512, 1.0, -1.0, 0.003, 1.0))
        return (
            _flows.lever(_flows.plain(inputs=(near,), stuck=True), "inputs-standardized"),
            _flows.plain(inputs=(cls._constant(),), stuck=True),
            _flows.lever(stuck, "inputs-standardized"),
            _flows.with_site(stuck, 1, saturated=0.99),
            _flows.with_site(by_heart, 1, saturated=0.99, forward=Moments(2048, 1.0, 0.1, 1e-3)),
            _flows.plain(inputs=(raw,), loss=LossView(1e22)),
            replace(
                _flows.with_site(_flows.plain(inputs=(raw,), loss=LossView(3e5)), 1, saturated=0.97), experiments=()
            ),
            _flows.lever(_flows.plain(stuck=True, loss=prices), "targets-standardized"),
            _flows.plain(stuck=True, loss=replace(prices, kind="other", value=9e4, floor=None)),
            flow_with_code(0.004),
        )
