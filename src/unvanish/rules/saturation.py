"""saturation: activations sit on their flat parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows, _words
from unvanish.types import Evidence, Finding, Flow, Moments, Site, Snapshot
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause


@dataclass(frozen=True)
class Saturation(AbstractRule):
    """Most units of bounded activations sit on their flat parts, where the derivative is nearly zero.

    Split exactly: S = A_ref - A is what a layer loses against the best slope its activation could have, B what its
    weights lose against the critical ones.  Saturation is the verdict only where S dominates and the units are really
    flat (derivative below 5 % of the best); "sigmoid saturates" is usually wrong: default weights lose by B, with not
    one saturated unit.  The wrong lever makes it worse: larger weights deepen saturation.  Gates are meant to saturate;
    they count only where all are shut, nothing goes around what they multiply, and the network does not learn.  So it is
    with the softmax of an attention: one-hot rows are what training may lead to, at the start they pass no gradient.
    And exp is its own derivative: kernels too narrow for the distances they see pass nothing.

    Cure: recentre (bias so that the mean input is 0), shrink the weights that feed the layer, standardise the inputs,
    or normalise before the activation; where training pushed the units there, lower the learning rate.
    """

    flat: float = 0.6
    shut: float = 0.95
    pinned: float = 20.0  # sigmoid(-20) is 2e-9
    sharp: float = 0.8
    tail: float = 10.0  # nats
    idle: float = 0.1
    memorized: float = 0.6  # of one batch: values alone can be learnt by heart so far, whatever is looked at
    passes: float = 0.05
    least: float = 2.0
    trains: float = 0.3
    cause: ClassVar[Cause] = "saturation"
    title: ClassVar[str] = "activations sit on their flat parts"
    source: ClassVar[str] = (
        "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, section 3"
    )
    remedies: ClassVar[tuple[str, ...]] = (
        "recentre what goes in: bias = 0, inputs of mean 0",
        "shrink the weights that feed it to the critical gain (1 for tanh, 4 for sigmoid)",
        "if training pushed it there: a tenth of the learning rate, or normalise before the activation",
    )

    def check(self, flow: Flow) -> Finding | None:
        if (reading.trains(flow) or 0.0) >= self.trains:
            return None
        at_start = self._flat(flow.sites)
        if at_start and self._matters(flow, at_start):
            return self._finding(flow, at_start, "from the first step on", 0.9)
        sharp = [s for s in flow.sites if s.kind == "softmax" and s.inputs and (s.saturated or 0.0) >= self.sharp]
        tails = [s for s in flow.sites if s.op == "exp" and _lost(s) > self.tail]
        if (sharp or tails) and self._idle(flow):
            return self._one_hot(flow, sharp) if sharp else self._on_tails(flow, tails)
        if reading.learns(flow):
            return None
        pinned = self._pinned(flow)
        if pinned:
            return self._gates(flow, pinned)
        closed = self._closed(flow.sites)
        if closed:
            return self._finding(flow, closed, "closed gates, from the first step on", 0.85)
        for snapshot in flow.snapshots:
            pushed = self._flat(snapshot.sites)
            if pushed and len(pushed) * 2 >= len(reading.activations(flow)):
                return self._finding(flow, pushed, f"pushed there by step {snapshot.step}", 0.6)
        return None

    def _idle(self, flow: Flow) -> bool:
        """The training itself does not get on, whatever of one batch is learnt by heart."""
        reached = reading.progress(flow)
        by_heart = reading.falls(flow) if reached is None else reached >= self.memorized
        return (reading.trains(flow) or 0.0) < self.idle and not by_heart

    def _flat(self, sites: tuple[Site, ...]) -> list[Site]:
        """Saturated activations; gates, which multiply another path, are meant to open and close."""
        gates = {order for s in sites if s.kind == "merge" and s.op == "mul" for order in s.inputs}
        return [s for s in self._saturated(sites) if s.order not in gates]

    def _saturated(self, sites: tuple[Site, ...]) -> list[Site]:
        return [s for s in sites if s.kind == "activation" and s.inputs and (s.saturated or 0.0) >= self.flat]

    def _closed(self, sites: tuple[Site, ...]) -> list[Site]:
        """Gates shut for all units and samples, whose product no other path goes around."""
        around = {order for s in sites if s.kind == "merge" and s.op != "mul" for order in s.inputs}
        products = [s for s in sites if s.kind == "merge" and s.op == "mul" and s.order not in around]
        gates = {order for s in products for order in s.inputs}
        shut = [s for s in self._saturated(sites) if s.order in gates and (s.saturated or 0.0) >= self.shut]
        return [s for s in shut if s.forward is not None and s.forward.rms < self.passes]

    def _matters(self, flow: Flow, flat: list[Site]) -> bool:
        """The loss by saturation is large, and larger than what the other layers lose by their weights.

        Where the gradient behind the flat units has left float32 (exactly zero), the units themselves are the proof.
        """
        known = [s.saturation_loss for s in flat if s.saturation_loss is not None]
        lost = sum(value for value in known if value > 0)
        by_weights = sum(reading.losses_of(reading.body(flow), "weights").values())
        bounded = [s for s in reading.activations(flow) if s.saturated is not None]
        if not known:
            return len(flat) * 2 > len(bounded)
        return lost > self.least and (lost > by_weights or len(flat) * 2 > len(bounded))

    def _finding(self, flow: Flow, flat: list[Site], event: str, confidence: float) -> Finding:
        worst = max(flat, key=lambda s: s.saturated or 0)
        lost = sum(max(0.0, s.saturation_loss or 0.0) for s in flat)
        return self._told(
            flow,
            reading.with_feeders(flow, flat),
            confidence,
            f"{_words.count(len(flat), 'activation')} saturated ({event}; {100 * (worst.saturated or 0):.0f} % of the units of "
            f"{worst.label}): {reading.decades(lost):.2g} decades of gradient are lost there. Expected: most units on the steep part. "
            "Recentre or shrink what goes into them; larger weights would make it worse.",
            Evidence(f"saturated units in {worst.label}", 100 * (worst.saturated or 0), "%", "below 20 %"),
            Evidence("gradient lost by saturation (S)", reading.decades(lost), "decades", "below 0.5"),
            remedies=self.remedies,
            source=self.source,
        )

    def _told(
        self,
        flow: Flow,
        where: tuple[str, ...],
        confidence: float,
        message: str,
        *evidence: Evidence,
        remedies: tuple[str, ...],
        source: str,
    ) -> Finding:
        shown = (*evidence, *reading.learning_evidence(flow))
        return Finding(self.cause, where, confidence, "high", shown, message, remedies, source)

    def _pinned(self, flow: Flow) -> dict[str, float]:
        """Recurrent modules whose biases hold their gates open or shut whatever comes, with the rms of the largest."""
        found: dict[str, float] = {}
        for site in flow.sites:
            own = [p for p in flow.parameters if site.kind == "recurrent" and p.name.startswith(f"{site.name}.bias")]
            rms = [math.exp(p.log_weight) / math.sqrt(math.prod(p.shape)) for p in own if p.log_weight is not None]
            if max(rms, default=0.0) > self.pinned:
                found[site.label] = max(rms)
        return found

    def _gates(self, flow: Flow, pinned: dict[str, float]) -> Finding:
        label, rms = max(pinned.items(), key=lambda item: item[1])
        return self._told(
            flow,
            tuple(pinned),
            0.85,
            f"The biases of {label} have an rms of {rms:.3g}: sigmoid and tanh are flat there, so its gates are open or shut "
            "whatever comes in. Expected: biases of 0 to 6. To mend it: zeros and a forget bias of 1, or the logarithm of "
            "the time scale (chrono: log(uniform(1, T - 1))).",
            Evidence(f"rms of the biases of {label}", rms, "", "below 6"),
            remedies=("gate biases of zero, the forget gate's 1", "or unvanish.torch.init's chrono biases"),
            source="Tallec and Ollivier 2018, arXiv:1804.11188, section 2",
        )

    def _one_hot(self, flow: Flow, sharp: list[Site]) -> Finding:
        """Attention whose scores are so large that each query sees one key from the start."""
        worst = max(sharp, key=lambda s: s.saturated or 0)
        share = 100 * (worst.saturated or 0)
        scale = "divide the scores by sqrt(d) of the keys"
        return self._told(
            flow,
            tuple(dict.fromkeys(label for s in sharp for label in (*_asking(flow, s), s.label))),
            0.8,
            f"The softmax at {worst.label} is one-hot in {share:.0f} % of its rows from the first step on: queries and keys get "
            f"next to no gradient. Expected: scores of standard deviation about 1. To mend it: {scale}, or shrink "
            "the weights that make queries and keys.",
            Evidence(f"one-hot rows in {worst.label}", share, "%", "below 20 % at the start"),
            remedies=(scale, "shrink the weights that make queries and keys", "or normalise queries and keys"),
            source="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1",
        )

    def _on_tails(self, flow: Flow, tails: list[Site]) -> Finding:
        """Kernels exp(-d^2 / 2 w^2) so narrow that every sample is far out on all of them."""
        worst = max(tails, key=_lost)
        lost = reading.decades(_lost(worst))
        cure = "widen the kernels: w of the order of the distances, which grow with the root of the dimension"
        return self._told(
            flow,
            reading.names(tails),
            0.8,
            f"exp at {worst.label} lets {10**-lost:.1g} of the gradient pass from the first step on: its derivative is its "
            f"output, and all samples are on its flat tail. Expected: some outputs near 1. To mend it: {cure}, or "
            "scale its argument.",
            Evidence(f"gradient lost at {worst.label}", lost, "decades", "below 2"),
            remedies=(cure, "or divide its argument by its typical size"),
            source="Bishop 2006, Pattern Recognition and Machine Learning, section 6.3 (radial basis functions)",
        )

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        return (
            _flows.plain(),
            _flows.plain(depth=30, weights=1.8, activation="sigmoid", stuck=True),
            _flows.plain(saturation=0.2, weights=-0.2, saturated=0.1, stuck=True),
            _flows.plain(saturation=2.0, saturated=0.9),
            cls._gated(passes=1.0),
            cls._gated(passes=1e-6, around=True),
            cls._attending(0.95, stuck=False),
            cls._attending(0.3, stuck=True),
            cls._kernels(1.5, stuck=True),
            cls._kernels(24.0, stuck=False),
            cls._recurrent(6.0),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        pushed = Snapshot(10, _flows.plain(saturated=0.95, stuck=True).sites, base.parameters)
        return (
            _flows.plain(saturation=2.5, saturated=0.95, stuck=True),
            replace(base, snapshots=(pushed,)),
            cls._gated(passes=1e-6),
            cls._attending(0.95, stuck=True),
            cls._kernels(24.0, stuck=True),
            cls._recurrent(400.0),
        )

    @staticmethod
    def _gated(passes: float, *, around: bool = False) -> Flow:
        """A squeeze-and-excitation gate that lets so much through, with or without a skip around it."""
        base = _flows.plain(stuck=True)
        order = len(base.sites)
        gate = Site(
            "se",
            "sigmoid",
            "activation",
            order,
            (64, 32),
            inputs=(0,),
            saturated=1.0,
            forward=Moments(2048, passes, passes),
        )
        product = Site("net", "mul", "merge", order + 1, (64, 32), inputs=(1, order))
        total = Site("net", "add", "merge", order + 2, (64, 32), inputs=(1, order + 1))
        return replace(base, sites=(*base.sites, gate, product, *(total,) * around))

    @staticmethod
    def _attending(one_hot: float, *, stuck: bool) -> Flow:
        """An attention in which so many rows see one key only."""
        base = _flows.plain(stuck=stuck)
        order = len(base.sites)
        scores = Site("att:matmul", "matmul", "attention", order, (64, 8), inputs=(0, 2))
        rows = Site("att:softmax", "softmax", "softmax", order + 1, (64, 8), inputs=(order,), saturated=one_hot)
        return replace(base, sites=(*base.sites, scores, rows))

    @staticmethod
    def _kernels(lost: float, *, stuck: bool) -> Flow:
        """Radial basis functions at which so much of the gradient is lost."""
        base = _flows.plain(stuck=stuck)
        order = len(base.sites)
        kernels = Site("rbf", "exp", "other", order, (64, 32), inputs=(0,), log_grad_out=-1.0, log_grad_in=-1.0 - lost)
        return replace(base, sites=(*base.sites, kernels))

    @staticmethod
    def _recurrent(bias: float) -> Flow:
        """An LSTM whose biases have this rms."""
        base = _flows.plain(stuck=True)
        lstm = Site("rnn", "mkldnn_rnn_layer", "recurrent", 0, (28, 64, 32), parameter="rnn.weight_ih_l0")
        biases = _flows.parameter("rnn.bias_ih_l0", shape=(128,), log_weight=math.log(bias * math.sqrt(128)))
        return replace(base, sites=(lstm,), parameters=(*base.parameters, biases))


def _lost(site: Site) -> float:
    """Nats of the gradient that it does not pass on."""
    return -(site.log_gain or 0.0)


def _asking(flow: Flow, softmax: Site) -> list[str]:
    """Labels of the weights that make the queries and keys of this softmax."""
    below = reading.below(flow.sites)
    scores = reading.descend(softmax, below, until=lambda site: site.kind == "attention")
    return [one.label for one in below[scores.order] if one.kind == "linear"]
