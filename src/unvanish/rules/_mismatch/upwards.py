"""A training that makes an error as large as it can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from unvanish.rules import _flows
from unvanish.rules._mismatch.fault import AbstractMismatch, Fault
from unvanish.types import Flow, OptimizerView, Site
from unvanish.vocabulary import DISTANCES

_ERRORS = (*DISTANCES, "cross_entropy", "bce", "bce_with_logits")  # never negative


@dataclass(frozen=True)
class Upwards(AbstractMismatch):
    """The training makes worse what it should make better."""

    def faults(self, flow: Flow) -> Iterator[Fault]:
        turned = flow.optimizer is not None and flow.optimizer.given and flow.optimizer.maximize
        played = flow.others or any(p.reached and p.in_optimizer is False for p in flow.parameters)
        ops = {s.op for s in flow.sites if s.kind == "loss"}
        single = flow.loss.kind in _ERRORS and flow.loss.terms <= 1 and "mul" not in ops  # which may be by a reward
        if single and not played and ((flow.loss.value < 0 and "neg" in ops) != turned):
            what = "the optimizer has maximize=True" if turned else "it has the sign turned"
            yield Fault(
                0.93, f"The loss is a {flow.loss.kind} and {what}: every step makes the answers worse. Expected: an error, "
                f"made small. {'Leave out maximize=True' if turned else 'Take the minus away'}.",
                "leave out maximize=True" if turned else "take the minus sign in front of the loss away",
            )  # fmt: skip

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        critic = (_flows.parameter("critic.0.weight", in_optimizer=False, reached=True),)
        return (_flows.plain(), replace(_negative("neg"), parameters=critic), _negative("mul"))

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        stuck = _flows.plain(stuck=True)
        return (replace(stuck, optimizer=OptimizerView("SGD", (0.1,), maximize=True)), _negative("neg"))


def _negative(op: str) -> Flow:
    """A cross-entropy below zero, by a minus sign or by a factor."""
    base = _flows.plain()
    sites = (*base.sites, Site("nll", op, "loss", len(base.sites), ()))
    return replace(base, loss=replace(base.loss, value=-2.3, floor=-2.3), sites=sites)
