"""recurrent-depth: the gradient does not reach back in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows
from unvanish.types import Evidence, Finding, Flow, TimeProfile
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause


@dataclass(frozen=True)
class RecurrentDepth(AbstractRule):
    """The loss reads the last time steps, and the gradient fades on its way back to the early ones.

    A recurrent layer is a deep net with one layer per time step.  The gradient of its weights is a sum over time and looks
    healthy while early steps get nothing; what counts is dL/dx_t over t.  Default LSTMs forget with sigmoid(0) = 0.5
    per step, 1e-30 over 100; forget bias 1 still leaves 0.73^100.  Padding at the end looks alike: the loss reads
    states that have run on over zeros.  A loss that reads every step (a language model) feeds early steps directly and is
    not affected, nor is a net that learns.

    Cure: chrono initialisation of the gates (forget bias ln U(1, T-1)), an orthogonal recurrent matrix with learning rate
    near 1 / (hidden x T), reading the last valid step (pack_padded_sequence), attention or pooling over time.
    """

    fall: float = math.log(1e3)
    steps: int = 10
    injected: float = 0.5
    trains: float = 0.06
    cause: ClassVar[Cause] = "recurrent-depth"
    title: ClassVar[str] = "the gradient does not reach back in time"
    source: ClassVar[str] = (
        "Bengio et al. 1994; Pascanu et al. 2013, arXiv:1211.5063; Tallec and Ollivier 2018, arXiv:1804.11188"
    )
    remedies: ClassVar[tuple[str, ...]] = (
        "chrono initialisation of the gates, or an orthogonal recurrent matrix",
        "read the last valid step: pack_padded_sequence",
        "learning rate near 1 / (hidden x T), attention or pooling over time",
    )

    def check(self, flow: Flow) -> Finding | None:
        if (reading.trains(flow) or 0.0) >= self.trains:
            return None
        if reading.best_lever(flow, "learning-rate", below=1.0) is not None:
            return None  # the way back in time is open: a smaller step learns
        faded = [p for p in flow.times if self._faded(p)]
        return self._finding(flow, faded) if faded else None

    def _faded(self, profile: TimeProfile) -> bool:
        fall = reading.time_fall(profile)
        read_everywhere = profile.injected is not None and profile.injected >= self.injected
        return len(profile.log_grads) >= self.steps and not read_everywhere and fall is not None and fall > self.fall

    def _finding(self, flow: Flow, faded: list[TimeProfile]) -> Finding:
        first = faded[0]
        fall = reading.time_fall(first) or 0.0
        length = len(first.log_grads)
        padding = f" The last {first.padded} steps get exactly nothing: padding?" if first.padded else ""
        shown = "everything" if fall == math.inf else f"{reading.decades(fall):.3g} decades"
        return Finding(
            cause=self.cause,
            where=tuple(p.name or "model" for p in faded),
            confidence=0.9 if not reading.learns(flow) else 0.8,
            severity="high",
            evidence=(
                Evidence("gradient lost over time", min(reading.decades(fall), 400.0), "decades", "below 2"),
                *self._over_states(first),
                Evidence("time steps", length, "", "a few dozen for a plain cell"),
                *reading.learning_evidence(flow),
            ),
            message=(
                f"Over {length} time steps of {first.name or 'the model'} ({first.op}) the gradient loses {shown}: what happened early "
                f"cannot be learnt.{padding} Expected: less than 2 decades from the last step to the first. Initialise the "
                "gates for this length, or shorten the way (attention, pooling, packed sequences)."
            ),
            remedies=self.remedies,
            source=self.source,
        )

    @staticmethod
    def _over_states(profile: TimeProfile) -> tuple[Evidence, ...]:
        """The same fall at the hidden states themselves, where the cell could be stepped."""
        states = replace(profile, log_grads=profile.log_state_grads, padded=0)
        fall = reading.time_fall(states)
        if fall is None:
            return ()
        return (
            Evidence("gradient lost from last to first state", min(reading.decades(fall), 400.0), "decades", "below 2"),
        )

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        even = TimeProfile("rnn", "lstm", tuple(-3.0 - 0.02 * t for t in range(50)))
        fading = TimeProfile("rnn", "lstm", tuple(-50.0 + t for t in range(50)))
        return (
            _flows.plain(times=(even,), stuck=True),
            _flows.plain(times=(fading,)),
            _flows.plain(times=(replace(fading, injected=1.0),), stuck=True),
            _flows.lever(_flows.plain(times=(fading,), stuck=True), "learning-rate", 0.1),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        fading = TimeProfile("rnn", "lstm", tuple(-50.0 + t for t in range(50)), injected=0.02)
        gone = TimeProfile("cell", "loop", (*([-math.inf] * 30), *(-20.0 + t for t in range(20))))
        return (_flows.plain(times=(fading,), stuck=True), _flows.plain(times=(gone,), stuck=True))
