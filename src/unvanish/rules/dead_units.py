"""dead-units: rectifiers that are off for every sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows
from unvanish.types import Evidence, Finding, Flow, Site, Snapshot
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause

_DROPOUTS = ("mul", "native_dropout", "fused_dropout")
_BY_HAND = ("mul", "where", "maximum", "masked_fill")  # by a mask or with zeros: nothing else carries a gradient


@dataclass(frozen=True)
class DeadUnits(AbstractRule):
    """Nearly all rectifiers of a layer are off for every sample: they put out a constant and pass no gradient.

    A ReLU whose input is negative on all data has derivative zero; nothing that is learnt through it changes it back.
    Counted, not inferred from norms: killing 98 % of one layer costs only 2 nats of gradient norm.  A unit counts as
    dead when its derivative was zero on all samples of all batches seen; sparse units, which fire now and then, are
    healthy.  Of rectifiers written by hand (a mask, where, maximum) it counts that none of the gradient passes.  Death has
    a cause upstream, and the report names the event: there from the start (a large negative bias or weights), or after the
    step that killed them (learning rate).

    Dropout with a probability near 1 silences nearly all units in turn, and little is left to learn with.

    Cure the cause first, then reset: bias 0 and He weights for the layer, a smaller learning rate or a warm-up,
    standardised inputs; LeakyReLU, GELU or SiLU cannot die entirely.
    """

    share: float = 0.85
    cause: ClassVar[Cause] = "dead-units"
    title: ClassVar[str] = "rectifiers that are off for every sample"
    source: ClassVar[str] = (
        "Maas et al. 2013, Rectifier nonlinearities improve neural network acoustic models; Lu et al. 2019, arXiv:1903.06733"
    )
    remedies: ClassVar[tuple[str, ...]] = (
        "undo what pushed the inputs below 0: a negative bias or weights, a large offset of the data, a step too large",
        "reset the layer: nn.init.zeros_(bias), nn.init.kaiming_normal_(weight)",
        "if units die again: a tenth of the learning rate with warm-up, or LeakyReLU, GELU, SiLU",
    )

    def check(self, flow: Flow) -> Finding | None:
        if reading.learns(flow):
            return None
        if reading.best_lever(flow, "dropout", above=-1.0) is not None:
            return self._silenced(flow)
        at_start = self._dead(flow.sites)
        if at_start:
            return self._finding(flow, at_start, "from the first step on: weights or bias push every input below 0")
        masked = self._masked(flow.sites)
        if masked and (not flow.snapshots or self._masked(flow.snapshots[-1].sites)):
            return self._shut(flow, masked)
        for snapshot in flow.snapshots:
            dead = self._dead(snapshot.sites)
            if dead:
                before = max((s.step for s in flow.snapshots if s.step < snapshot.step), default=0)
                return self._finding(flow, dead, f"killed between step {before} and step {snapshot.step}", later=True)
        return None

    def _dead(self, sites: tuple[Site, ...]) -> list[Site]:
        return [
            s for s in sites if s.kind == "activation" and s.op in reading.RECTIFIERS and (s.dead or 0.0) >= self.share
        ]

    @staticmethod
    def _masked(sites: tuple[Site, ...]) -> list[Site]:
        """Rectifiers written by hand (h * (h > 0), torch.where, torch.maximum) that pass no gradient at all.

        It arrives there, and is exactly zero at all that feeds it, though no weight stands in between.
        """
        below = reading.below(sites)
        found = []
        for site in sites:
            plain = site.op in _BY_HAND and site.kind == "other" and site.parameter is None
            arrives = plain and site.log_grad_out is not None and site.log_grad_out > -math.inf
            if arrives and below[site.order] and all(s.log_grad_out == -math.inf for s in below[site.order]):
                found.append(site)
        return found

    def _silenced(self, flow: Flow) -> Finding:
        """Dropout leaves too little: with its modules switched off the same network learns."""
        places = reading.names(s for s in flow.sites if s.op in _DROPOUTS and s.kind == "other" and ":" not in s.label)
        return Finding(
            cause=self.cause,
            where=places or ("dropout",),
            confidence=0.85,
            severity="high",
            evidence=reading.learning_evidence(flow),
            message=(
                "Dropout silences so many units at each step that the rest learns nothing: with its modules switched off the same "
                "network learns. Expected: a probability of 0.1 to 0.5, which is the share that is silenced, not the share that is "
                "kept. Lower p."
            ),
            remedies=("set dropout to p = 0.1 to 0.5: p is the share of units that is silenced",),
            source="Srivastava et al. 2014, Dropout, JMLR 15, appendix A.4",
        )

    def _shut(self, flow: Flow, masked: list[Site]) -> Finding:
        last = masked[-1]
        return Finding(
            cause=self.cause,
            where=reading.with_feeders(flow, masked),
            confidence=0.85,
            severity="high",
            evidence=(
                Evidence(f"gradient that passes {last.label}", 0.0, "", "above 0"),
                *reading.learning_evidence(flow),
            ),
            message=(
                f"{last.label} passes no gradient: what arrives there is exactly zero below it, on all samples. Expected: every unit "
                "lets some samples through. A mask, where or maximum works like a ReLU that is off: look at the bias and "
                "the weights that feed it, and at the condition itself."
            ),
            remedies=self.remedies,
            source=self.source,
        )

    def _finding(self, flow: Flow, dead: list[Site], event: str, later: bool = False) -> Finding:
        first = dead[0]
        undo, reset, slower = self.remedies
        killer = "a tenth of the learning rate, or warm it up: a step too large killed them"
        return Finding(
            cause=self.cause,
            where=reading.with_feeders(flow, dead),
            confidence=0.62 if later else 0.92,
            severity="high",
            evidence=(
                Evidence(f"dead units in {first.label}", 100 * (first.dead or 0), "%", "below 50 %"),
                *reading.learning_evidence(flow),
            ),
            message=(
                f"{100 * (first.dead or 0):.0f} % of the units of {first.label} are dead ({event}): their output is constant and "
                "no gradient passes them. Expected: every unit fires on some samples. Cure what killed them, then reset "
                "the layer's bias and weights."
            ),
            remedies=(killer, reset, undo) if later else (undo, reset, slower),
            source=self.source,
        )

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        return (
            _flows.plain(activation="relu", dead=0.4),
            _flows.plain(activation="relu", dead=0.6, stuck=True),
            _flows.plain(activation="relu", dead=0.95),
            _flows.plain(activation="tanh", dead=1.0, stuck=True),
            cls._by_mask(-4.0),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(activation="relu", stuck=True)
        killed = Snapshot(10, _flows.with_site(base, 3, dead=1.0).sites, base.parameters)
        return (
            _flows.with_site(base, 3, dead=0.97),
            replace(base, snapshots=(killed,)),
            cls._by_mask(-math.inf),
            _flows.lever(base, "dropout", 0.0),
        )

    @staticmethod
    def _by_mask(below: float) -> Flow:
        """h * (h > 0) in place of the last activation, with so much gradient below it."""
        base = _flows.plain(activation="relu", stuck=True)
        place = max(k for k, s in enumerate(base.sites) if s.kind == "activation")
        fed = base.sites[place].inputs[0]
        masked = _flows.with_site(base, place, op="mul", kind="other", log_grad_out=-3.0, dead=None)
        return _flows.with_site(masked, fed, log_grad_out=below)
