"""Losses that are flat where the answer is wrong: those that read a saturated sigmoid."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from unvanish import reading
from unvanish.rules import _flows
from unvanish.rules._mismatch.fault import AbstractMismatch, Fault
from unvanish.types import Flow, LossView, Site, Snapshot, Step
from unvanish.vocabulary import DISTANCES


@dataclass(frozen=True)
class Flat(AbstractMismatch):
    """The slope p(1-p) of a sigmoid, which the loss does not undo."""

    saturated: float = 0.7
    all_saturated: float = 0.95
    flat: float = 5.0  # nats
    looks: int = 4
    stands: float = 1e-5
    idle: float = 0.06

    def faults(self, flow: Flow) -> Iterator[Fault]:
        yield from self._flat_loss(flow)
        yield from self._saturating(flow)

    def _flat_loss(self, flow: Flow) -> Iterator[Fault]:
        loss = flow.loss
        if loss.kind in DISTANCES and (loss.output_saturated or 0) > self.saturated and not reading.learns(flow):
            yield Fault(
                0.9, f"{100 * (loss.output_saturated or 0):.0f} % of the outputs of the last {loss.feeding} are saturated "
                f"and the loss is {loss.kind}: its gradient carries the factor p(1-p), near zero even where the answer is "
                "wrong. Expected: a loss that undoes the saturation. Use BCEWithLogits or cross-entropy on the logits.",
                "use BCEWithLogitsLoss or CrossEntropyLoss on the logits",
            )  # fmt: skip

    def _saturating(self, flow: Flow) -> Iterator[Fault]:
        """A loss without a known bottom that reads a sigmoid which the other player has saturated, as log(1 - D(G(z)))."""
        if flow.loss.floor is not None or not flow.snapshots or (reading.trains(flow) or 0.0) >= self.idle:
            return
        flat = self._flat_sigmoid(flow.snapshots[-1].sites)
        late = [_lost(self._flat_sigmoid(look.sites)) for look in flow.snapshots[-self.looks :]]
        lost = late[-1]
        last = reading.largest_updates(flow)[-1:]
        still = any(update < self.stands for update in last) or self._flat_sigmoid(flow.sites)
        loses = len(late) == self.looks and min(late) > self.flat and _rises(flow.steps)
        if lost > self.flat and (still or loses):
            yield Fault(
                0.85, f"The loss reads {flat[0].label}, a sigmoid that is saturated for nearly all samples by now: its slope "
                f"leaves {math.exp(-lost):.1g} of the gradient. Expected: a loss whose gradient is large "
                "where the answer is wrong. Use its non-saturating form, -log D(G(z)) in place of log(1 - D(G(z))), on the "
                "logits: binary_cross_entropy_with_logits.",
                "use the non-saturating loss: binary_cross_entropy_with_logits against the labels you want to be seen",
                flat[0].label,
            )  # fmt: skip

    def _flat_sigmoid(self, sites: tuple[Site, ...]) -> list[Site]:
        """The last activation, if it is a saturated sigmoid that nothing but the loss reads."""
        last = [s for s in sites if s.kind == "activation"][-1:]
        read = all(s.kind == "loss" for s in sites if last and s.order > last[0].order)
        return [s for s in last if s.op == "sigmoid" and (s.saturated or 0.0) >= self.all_saturated and read]

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        base = _flows.plain()
        return (base, replace(base, loss=replace(base.loss, kind="mse", feeding="sigmoid", output_saturated=0.95)))

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        distance = replace(base, loss=replace(base.loss, kind="mse", feeding="sigmoid", output_saturated=0.95))
        sure = Site(
            "critic.3", "sigmoid", "activation", 9, (64, 1), log_grad_out=-2.0, log_grad_in=-11.5, reference=math.log(0.25),
            saturated=1.0,
        )  # fmt: skip
        looks = tuple(Snapshot(step, (sure,), base.parameters) for step in (5, 10, 20, 50))
        still = tuple(Step(i, -0.001, -8.0, 1e-7, 1e-7) for i in range(60))
        worse = tuple(Step(i, -0.6 * math.exp(-i / 5), -5.0, 1e-3, 1e-2) for i in range(60))
        player = replace(base, loss=LossView(-0.1), steps=still, experiments=(), snapshots=looks[-1:])
        return (distance, player, replace(player, loss=LossView(-0.6), steps=worse, snapshots=looks))


def _lost(sites: Sequence[Site]) -> float:
    """Nats of the gradient that the flattest of these activations takes, all where none arrives from a loss at its end."""
    return max((math.inf if s.log_grad_out == -math.inf else s.saturation_loss or 0.0 for s in sites), default=0.0)


def _rises(steps: Sequence[Step]) -> bool:
    """Does the loss end above where it began?"""
    fifth = max(1, len(steps) // 5)
    return bool(steps) and statistics.median(step.loss for step in steps[-fifth:]) > steps[0].loss
