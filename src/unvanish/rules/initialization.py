"""initialization: weights below critical for their activation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading, theory
from unvanish.rules import _flows, _words
from unvanish.rules._factors import faint, flow_with_factors
from unvanish.types import Evidence, Experiment, Finding, Flow, Moments, Site, Step
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause

_OF_LOGITS = ("cross_entropy", "bce_with_logits")


@dataclass(frozen=True)
class Initialization(AbstractRule):
    """The weights are below critical for their activation: each layer shrinks signal and gradient by a steady factor.

    B = -A_ref - M is what a layer's weights lose against critical ones (gain 1 for tanh, 4 for sigmoid, sqrt 2 for
    ReLU).  PyTorch's default, U(+-1/sqrt n), has gain 0.58: every layer costs 0.55 nats with tanh and 1.9 with sigmoid,
    and after 12 to 30 layers nothing is left of the gradient, nor of the difference between samples (separation).
    Weights far above critical in the last layer make logits that are sure of wrong answers: the first loss is many times
    that of a guess.  No optimizer and no learning rate brings back information that float32 has rounded away; new
    weights do.  One tiny layer in the middle has the same sign, at one place.  Two tiny embeddings that are multiplied
    with one another stay at their saddle, for each gets a gradient as large as the other.

    Cure: critical initial weights (orthogonal or Gaussian with the activation's gain, He for ReLU; for sigmoid also a
    compensating bias), or normalisation with residual connections.
    """

    per_layer: float = 0.1
    local: float = 1.5
    deep: int = 6
    very_deep: int = 20  # layers from which critical weights, of whatever kind, are not enough
    nothing_left: float = math.log(1e4)
    fall: float = reading.FALL
    loud: float = 10.0
    far: float = 5.0
    learnt: float = 0.1
    around: float = 2.0
    fair: float = 0.2
    beats: float = 0.002  # of a constant answer's loss: what is stuck stays above it
    cause: ClassVar[Cause] = "initialization"
    title: ClassVar[str] = "weights below critical for their activation"
    source: ClassVar[str] = (
        "He et al. 2015, arXiv:1502.01852, section 2.2; Schoenholz et al. 2017, arXiv:1611.01232, section 3"
    )
    remedies: ClassVar[tuple[str, ...]] = (
        "initialise these layers at the critical gain: nn.init.orthogonal_(weight, gain), gain 1 for tanh, 1.41 for ReLU (He);"
        " for sigmoid 4, with bias = -weight.sum(1) / 2",
        _words.FOR_THE_DEPTH,
        "or change the structure: residual connections with normalisation",
    )

    def check(self, flow: Flow) -> Finding | None:
        return self._weak(flow) or self._loud(flow) or self._faint(flow)

    def _weak(self, flow: Flow) -> Finding | None:
        fall = reading.fall(flow)
        losses = reading.losses_of(reading.body(flow), "weights")
        by_weights = sum(losses.values())
        lost = fall is not None and fall >= self.fall and not self._copes(flow, fall, by_weights)
        if not losses or not (lost or self._dies(flow, by_weights)):
            return None
        by_saturation = sum(max(0.0, v) for v in reading.losses_of(flow.sites, "saturation").values())
        if by_weights <= by_saturation or by_weights < self.fall:
            return None
        alone = reading.outlier(losses, self.local)
        if alone is not None:
            return self._finding(flow, {alone: losses[alone]}, min(0.9, self._sure(flow)))
        low = {label: value for label, value in losses.items() if value > self.per_layer}
        enough = low and by_weights / len(losses) >= self.per_layer
        return self._finding(flow, low, self._sure(flow)) if enough else None

    def _loud(self, flow: Flow) -> Finding | None:
        """Weights far above critical at the very end: logits of 50 are sure of wrong answers before anything is learnt."""
        loss, last = flow.loss, [s for s in reading.body(flow) if s.kind == "linear"][-1:]
        if loss.kind not in _OF_LOGITS or loss.floor is None or loss.output is None or not last:
            return None
        quiet = loss.value < self.far * loss.floor or loss.output.rms < self.loud
        if quiet or (reading.progress(flow) or 0.0) >= self.learnt:
            return None
        cure = "draw its weights with a standard deviation of 1 / sqrt(fan_in) or less, or divide the logits by sqrt(fan_in)"
        return Finding(
            cause=self.cause,
            where=reading.names(last),
            confidence=0.75,
            severity="high",
            evidence=(
                Evidence("rms of the outputs at the start", loss.output.rms, "", "about 1"),
                Evidence("first loss", loss.value, "", f"near {loss.floor:.4g} (guessing)"),
                *reading.learning_evidence(flow),
            ),
            message=(
                f"{last[0].label} puts out logits with an rms of {loss.output.rms:.3g} at the start, so the first loss is {loss.value:.3g} "
                f"where guessing reaches {loss.floor:.3g}: the weights are far too large, and training only takes them back. "
                f"Expected: logits of about 1. To mend it: {cure}."
            ),
            remedies=(
                cure,
                "tied to an embedding: draw that with a standard deviation of 0.02, and scale its output up",
            ),
            source="Glorot and Bengio 2010, section 4.2; Vaswani et al. 2017, arXiv:1706.03762, section 3.4 (shared weights)",
        )

    def _faint(self, flow: Flow) -> Finding | None:
        """Factors near a saddle: each gets a gradient as large as the other is."""
        factors = faint(flow)
        if not factors:
            return None
        sizes = [site.forward.rms for site in factors if site.forward is not None]
        cure = "draw these embeddings with a standard deviation of 0.1 or so, such that the first products are not all zero"
        return Finding(
            cause=self.cause,
            where=reading.names(factors),
            confidence=0.8,
            severity="high",
            evidence=(
                Evidence("rms of the embeddings", max(sizes), "", "0.1 to 1"),
                *reading.learning_evidence(flow),
            ),
            message=(
                f"{' and '.join(reading.names(factors))} are multiplied with one another and start with an rms of {max(sizes):.2g}: their "
                "products are nearly zero, and each gets a gradient only as large as the other. They hardly leave this saddle. "
                f"Expected: factors of 0.1 to 1. To mend it: {cure}."
            ),
            remedies=(cure, "or an adaptive optimizer, whose steps do not depend on the size of the gradient"),
            source="Saxe et al. 2014, arXiv:1312.6120, section 1 (slow escape from the saddle of a product of small weights)",
        )

    def _copes(self, flow: Flow, fall: float, by_weights: float) -> bool:
        """It learns all the same; where next to nothing of the gradient is left, it must do so without long waiting.

        Where more is left, a loss that beats the constant answer is enough: that of an autoencoder with a narrow code,
        or of an agent with a quiet last layer, never comes near 0.
        Where the layers lose far more than the first of them lacks, the gradient comes by another way, as in a U-Net: a
        loss that falls is enough then.
        """
        if by_weights > self.around * fall and reading.falls(flow) and (reading.progress(flow) or 0.0) >= self.fair:
            return True
        if fall > self.nothing_left:
            return reading.learns_promptly(flow)
        beaten = (reading.progress(flow) or 0.0) >= self.beats
        return beaten or reading.learns(flow) or reading.learnt_once(flow)

    def _dies(self, flow: Flow, by_weights: float) -> bool:
        """Nothing of the signal is left at the end, and nothing is learnt, whatever the gradient does on its way.

        In the loss of a differential equation the gradient comes in at every layer, and grows where the signal dies.
        """
        sizes = [s.forward.rms for s in reading.body(flow) if s.forward is not None]
        dead = len(sizes) > 1 and 0.0 < sizes[-1] < math.exp(-self.nothing_left) * sizes[0]
        return dead and by_weights >= self.nothing_left and (reading.progress(flow) or 0.0) < self.learnt

    def _sure(self, flow: Flow) -> float:
        """Less so where these very weights learn at another rate, or where the layers are few."""
        rate = reading.best_lever(flow, "learning-rate")
        if rate is not None and (rate.progress or 0.0) >= reading.LEARNS:
            return 0.6
        return 0.93 if len(reading.losses_of(reading.body(flow), "weights")) >= self.deep else 0.75

    def _finding(self, flow: Flow, low: dict[str, float], confidence: float) -> Finding:
        mean = sum(low.values()) / len(low)
        falls = (reading.fall(flow) or 0.0) >= self.fall
        end = "the first layers get next to nothing" if falls else "nothing of the signal is left at the end"
        separation = reading.separation(flow)
        shown = (
            (Evidence("samples told apart at the end", separation, "", "above 0.05"),) if separation is not None else ()
        )
        return Finding(
            cause=self.cause,
            where=tuple(low),
            confidence=confidence,
            severity="high",
            evidence=(
                Evidence("gradient lost per layer (B)", reading.decades(mean), "decades", "below 0.05"),
                Evidence("lost over all layers", reading.decades(sum(low.values())), "decades", "below 1.5"),
                *shown,
                *reading.learning_evidence(flow),
            ),
            message=(
                f"The weights of {_words.count(len(low), 'layer')} are {_words.times(math.exp(mean))} times too small for their "
                f"activation, which costs {reading.decades(sum(low.values())):.2g} decades of gradient: {end}. "
                "Expected: weights at the activation's critical gain, which cost nothing. "
                "Re-initialise these layers; raising the learning rate cannot help."
            ),
            remedies=self._cures(flow),
            source=self.source,
        )

    def _cures(self, flow: Flow) -> tuple[str, ...]:
        """The gain of the activations met here, and weights for the depth; these first where the gain is not enough."""
        recipe, deep, structure = self._recipe(flow), *self.remedies[1:]
        first = (deep, recipe) if reading.plain_depth(flow) > self.very_deep + 1 else (recipe, deep)
        return (*first, structure)

    @staticmethod
    def _recipe(flow: Flow) -> str:
        """The first remedy with the numbers of the activations met here."""
        met = {_name(site): site.reference or 0.0 for site in reading.activations(flow)}
        gains = {name: f"{math.exp(-log_slope):.3g}" for name, log_slope in met.items()}
        if len(gains) > 1:
            each = ", ".join(f"{gain} for {name}" for name, gain in gains.items())
            return f"initialise these layers at the critical gain: nn.init.orthogonal_(weight, gain), gain {each}"
        ((name, gain),) = gains.items() or (("a linear layer", "1"),)
        centred = ", bias = -weight.sum(1) / 2" if name == "sigmoid" else ""
        made = f"nn.init.orthogonal_(weight, gain={gain})"
        return f"initialise these layers at the critical gain of {name}: {made}{centred}"

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        return (
            _flows.plain(),
            _flows.plain(depth=30, weights=0.02, stuck=True),
            _flows.plain(depth=8, saturation=3.0, saturated=0.95, stuck=True),
            _flows.plain(depth=20, weights=0.5),
            _bypassed(stuck=False),
            _dying(stuck=False),
            _shouting(1.5),
            flow_with_factors(0.3),
            flow_with_factors(1e-4, stuck=False),
            replace(_shouting(60.0), steps=_flows.plain().steps, experiments=_flows.plain().experiments),
            replace(_flows.plain(depth=8, weights=0.7, stuck=True), steps=_beating(0.03)),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        one = _flows.plain(depth=8, stuck=True)
        tiny = _flows.with_site(one, 6, log_grad_in=-6.0, log_grad_out=0.0)
        for index in range(6):
            site = tiny.sites[index]
            tiny = _flows.with_site(
                tiny, index, log_grad_out=(site.log_grad_out or 0) - 6,
                log_grad_in=None if site.log_grad_in is None else site.log_grad_in - 6,
            )  # fmt: skip
        return (
            _flows.plain(depth=20, activation="sigmoid", weights=1.9, stuck=True),
            _flows.plain(depth=30, weights=0.55, stuck=True),
            replace(_flows.plain(depth=8, weights=0.7, stuck=True), steps=_beating(0.0)),
            replace(_flows.plain(depth=30, weights=0.55, stuck=True), steps=_beating(0.03)),  # next to nothing is left
            tiny,
            _bypassed(stuck=True),
            _dying(stuck=True),
            _shouting(60.0),
            flow_with_factors(1e-4),
        )


def _beating(share: float) -> tuple[Step, ...]:
    """A training that ends so far below the constant answer's loss."""
    return tuple(Step(i, (1 - share * i / 29) * _flows.FLOOR, 0.0, 1e-3, 1e-2) for i in range(30))


def _shouting(rms: float) -> Flow:
    """A classifier whose logits are so large at the start."""
    base = _flows.plain(stuck=True)
    output = Moments(640, rms, 0.0, rms)
    return replace(base, loss=replace(base.loss, kind="cross_entropy", value=2.3 * max(1.0, rms), output=output))


def _bypassed(*, stuck: bool) -> Flow:
    """Layers that lose five decades, and a first one that gets its gradient by a way around them; a slow start."""
    base = _flows.plain(depth=12, weights=1.0, stuck=stuck)
    around = _flows.with_site(base, 0, log_grad_out=-5.0)
    slow = tuple(_flows.FLOOR * (1 - i / 100) for i in range(30))
    return around if stuck else replace(around, experiments=(Experiment("none", 1.0, slow, _flows.FLOOR),))


def _dying(*, stuck: bool) -> Flow:
    """A signal that shrinks to nothing, in a loss that feeds a gradient to every layer."""
    flow = _flows.plain(weights=2.7, stuck=stuck)
    for index, site in enumerate(flow.sites):
        lost = (site.log_grad_out or 0.0) + 2.0 * index
        into = None if site.log_grad_in is None else site.log_grad_in - lost
        forward = Moments(2048, 0.5 * math.exp(-1.35 * index), 0.0, 0.0)
        flow = _flows.with_site(flow, index, log_grad_out=-2.0 * index, log_grad_in=into, forward=forward)
    return flow


def _name(site: Site) -> str:
    return site.op if theory.is_known(site.op) else "the activation written by hand"
