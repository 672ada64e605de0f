"""depth: a plain stack deeper than its initialisation carries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows, _words
from unvanish.types import Evidence, Finding, Flow
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause


@dataclass(frozen=True)
class Depth(AbstractRule):
    """No single layer is at fault; there are too many of them in a row without a skip.

    Two signs.  Either every layer loses a little (below 0.1 nats) and the sum is large: 300 layers at 95 % keep 2e-7.
    Or norms are perfectly kept and the net still does not learn: with He weights a deep ReLU net maps all samples to one
    direction (correlations tend to 1, the Jacobian's stable rank to 1), and Gaussian Xavier does the same to tanh.
    Keeping the gradient's norm is not sufficient.  Saying so needs proof that the net does not learn: one batch could
    not be learnt by heart.

    Cure: residual connections (a zero-initialised branch carries any depth); or weights made for the depth: orthogonal
    at the operating point for tanh and sigmoid, mirrored for ReLU, GELU and SiLU, with a learning rate near
    1 / (fan_in x depth); or fewer layers.
    """

    per_layer: float = 0.1
    layers: int = 30
    fall: float = reading.FALL
    collapsed: float = 2.0
    cause: ClassVar[Cause] = "depth"
    title: ClassVar[str] = "a plain stack deeper than its initialisation carries"
    source: ClassVar[str] = (
        "Schoenholz et al. 2017, arXiv:1611.01232, section 3; He et al. 2016, arXiv:1512.03385, section 4.1"
    )
    remedies: ClassVar[tuple[str, ...]] = (
        _words.FOR_THE_DEPTH,
        "or residual connections, the last layer of each branch initialised with zeros",
        "or fewer layers",
    )

    def check(self, flow: Flow) -> Finding | None:
        layers = reading.plain_depth(flow)
        if layers < self.layers or reading.learns_promptly(flow):
            return None
        fall = reading.fall(flow)
        if fall is None or fall == math.inf or math.isnan(fall) or self._per_layer(flow, fall, layers) > self.per_layer:
            return None
        return self._finding(flow, layers, fall)

    @staticmethod
    def _per_layer(flow: Flow, fall: float, layers: int) -> float:
        """Nats that each layer of the stack loses or gains: what pooling and a small head after it lose is theirs."""
        stack = [s.log_grad_out for s in reading.body(flow)[:-1] if s.log_grad_out is not None]
        inside = abs(stack[-1] - stack[0]) if len(stack) > 1 else math.inf
        return min(abs(fall), inside) / layers

    def _finding(self, flow: Flow, layers: int, fall: float) -> Finding:
        lost = fall > self.fall
        separation = reading.separation(flow)
        shown: tuple[Evidence, ...] = (
            (Evidence("samples told apart at the end", separation, "", "above 0.05"),) if separation is not None else ()
        )
        if flow.stable_rank is not None:
            shown += (Evidence("directions that survive (stable rank)", flow.stable_rank, "of 8", "above 2"),)
        how = (
            f"each keeps {100 * math.exp(-fall / layers):.0f} % of the gradient, and yet the first gets "
            f"{reading.decades(fall):.2g} decades less than the last"
            if lost
            else "the gradient keeps its size, but what distinguishes the samples is lost on the way"
        )
        return Finding(
            cause=self.cause,
            where=reading.names(reading.body(flow)),
            confidence=0.85 if lost or (flow.stable_rank or 8.0) < self.collapsed else 0.75,
            severity="high",
            evidence=(
                Evidence("layers in a row without a skip", layers, "", "below 20"),
                Evidence("gradient lost, last to first layer", reading.decades(fall), "decades", "below 1.5"),
                *shown,
                *reading.learning_evidence(flow),
            ),
            message=(
                f"{layers} layers stand in a row without a skip: {how}. Expected: skips, or weights made for that depth. "
                "Initialise for the depth and use a learning rate near 1 / (fan_in x depth), or add residual connections."
            ),
            remedies=self.remedies,
            source=self.source,
        )

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        return (
            _flows.plain(depth=100),
            _flows.plain(depth=8, stuck=True),
            _flows.plain(depth=40, weights=0.6, stuck=True),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        return (
            _flows.plain(depth=300, weights=0.05, stuck=True),
            _flows.plain(depth=100, activation="relu", stuck=True),
        )
