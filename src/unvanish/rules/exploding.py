"""exploding: signal or gradient grows with every layer or time step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows, _words
from unvanish.types import Evidence, Finding, Flow, Moments, TimeProfile
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause


@dataclass(frozen=True)
class Exploding(AbstractRule):
    """Signal and gradient grow by a steady factor with every layer or time step, until steps are wild or numbers overflow.

    The opposite of vanishing: weights above critical (standard normal weights of width 64 have gain 8), a recurrent
    matrix of spectral radius above 1, a leaky or linear stack with gain 3.  The first layers get gradients many decades
    larger than the last, so no learning rate fits both; the loss starts far above the constant predictor's.

    Cure: critical initial weights; for recurrent nets an orthogonal recurrent matrix; clipping the gradient's norm tames
    single steps but not a steady factor.
    """

    growth: float = math.log(1e3)
    cause: ClassVar[Cause] = "exploding"
    title: ClassVar[str] = "signal or gradient grows with every layer or time step"
    source: ClassVar[str] = (
        "Pascanu et al. 2013, arXiv:1211.5063; Schoenholz et al. 2017, arXiv:1611.01232 (chaotic phase)"
    )
    remedies: ClassVar[tuple[str, ...]] = (
        "initialise at the critical gain (1 for tanh and linear, 1.41 for ReLU: He)",
        "nn.init.orthogonal_ for the hidden-to-hidden weights of a recurrent net",
        "against what remains: clip_grad_norm_(parameters, 1.0)",
    )

    def check(self, flow: Flow) -> Finding | None:
        if reading.learns(flow):
            return None
        over_time = [p for p in flow.times if (grown := reading.time_fall(p)) is not None and grown < -self.growth]
        if over_time:
            return self._finding(
                flow, tuple(p.name for p in over_time), -(reading.time_fall(over_time[0]) or 0), "time step"
            )
        forward = self._forward(flow)
        fall = reading.fall(flow)
        grown = max(forward, -fall if fall is not None and not math.isnan(fall) else 0.0)
        if grown < self.growth:
            return None
        above = {k: v for k, v in reading.losses_of(reading.body(flow), "weights").items() if v < -0.3}
        return self._finding(flow, tuple(above) or reading.names(reading.body(flow)), grown, "layer")

    def _forward(self, flow: Flow) -> float:
        """Nats by which the signal is larger after the last weights than after the first; inf where it overflows."""
        rms = [s.forward.rms for s in reading.body(flow) if s.forward is not None]
        if len(rms) < 2 or rms[0] == 0:
            return 0.0
        if not all(map(math.isfinite, rms)):
            return math.inf if math.isfinite(rms[0]) and reading.overflowed(flow) else 0.0
        return math.log(rms[-1] / rms[0]) if rms[-1] > 0 and rms[-1] > 50 else 0.0

    def _finding(self, flow: Flow, where: tuple[str, ...], grown: float, per: str) -> Finding:
        over = f"over {_words.count(len(where), per)}" if per == "layer" else f"over the time steps of {where[0]}"
        return Finding(
            cause=self.cause,
            where=where,
            confidence=0.88,
            severity="high",
            evidence=(
                Evidence(f"growth over all {per}s", reading.decades(grown), "decades", "below 1.5"),
                Evidence("first loss", flow.loss.value, "", "near that of guessing"),
                *reading.learning_evidence(flow),
            ),
            message=(
                f"Signal or gradient grows by {reading.decades(grown):.2g} decades {over}: the weights are above critical. "
                f"Expected: a factor near 1 per {per}. Re-initialise at the critical gain; clip the gradient norm against "
                "what remains."
            ),
            remedies=(self.remedies[0 if per == "layer" else 1], self.remedies[2]),
            source=self.source,
        )

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        return (_flows.plain(), _flows.plain(weights=-0.2, stuck=True), _flows.plain(depth=20, weights=-0.6))

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        hot = _flows.with_site(base, len(base.sites) - 2, forward=Moments(2048, 1e6, 0.0, 1e5))
        late = TimeProfile("rnn", "rnn", tuple(30.0 - t for t in range(30)))
        return (_flows.plain(depth=20, weights=-1.2, stuck=True), hot, replace(base, times=(late,)))
