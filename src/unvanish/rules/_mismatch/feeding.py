"""What a loss is fed with, against what its documentation says it takes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

from unvanish import reading
from unvanish.rules import _flows
from unvanish.rules._mismatch.fault import AbstractMismatch, Fault
from unvanish.types import Flow, LossView

_LOGARITHMS = ("log_softmax", "log", "log_sigmoid", "logsumexp", "where", "")
_BOUNDED = 0.3  # nats that a perfect answer keeps
_SPREAD = 0.35  # of the constant predictor's loss, removed beyond the program's own, when logits are far apart
_BEGUN = 0.1  # of it: more than a lost gradient removes
_UNDECIDED = 0.01  # nats from the loss of equal logits: these differ by 0.1 or so
_LEARNT = 0.7
_STANDS = 0.03  # of the loss, from one fifth of the steps to the next
_BY_RATE = 0.2  # of it, by which no learning rate comes as near
_RANGES = {"sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, math.inf)}

Limits = tuple[float, float]


def limits(loss: LossView) -> Limits | None:
    """Between which what the loss reads must lie."""
    return loss.limits or _RANGES.get(loss.feeding or "")


def _wrongly_fed(flow: Flow) -> Iterator[Fault]:
    """Of every term of the loss, and of a softmax before it that runs over the batch."""
    loss = flow.loss
    for kind, feeding in loss.parts or ((loss.kind, loss.feeding or ""),):
        yield from _of_classes(kind, feeding)
        yield from _bounded(kind, feeding, loss.classes or 1, _RANGES.get(feeding) if loss.parts else limits(loss))
        yield from _of_probabilities(kind, feeding)
    if loss.normalized_axis == 0 and len(loss.output_shape or ()) > 1 and (flow.batch_size or 0) > 1:
        yield Fault(
            0.95,
            "The softmax before the loss runs over the samples of the batch (dim=0): each class's probabilities "
            "sum to 1 over the batch, and an answer depends on what else is in it. Expected: a sum of 1 over the "
            "classes of each sample. Use dim=-1.",
            "let the softmax run over the classes: dim=-1",
        )


def _too_close(flow: Flow) -> Iterator[Fault]:
    """Logits that learn once they are multiplied, and at no learning rate: something holds them together.

    They can be so held by a division; or by a bound, and then the loss does fall, but stands far from 0.
    """
    spread = reading.best_lever(flow, "logits", above=1.0)
    if spread is None or reading.learns(flow):
        return
    own, with_factor = reading.progress(flow) or 0.0, spread.progress or 0.0
    read = {feeding for _, feeding in flow.loss.parts} or {flow.loss.feeding or ""}
    divided = read <= {"div", "mul"} and own < _BEGUN and _undecided(flow.loss)
    rates = [e.progress or 0.0 for e in flow.experiments if e.lever == "learning-rate"]
    bound = own > _BEGUN and _stands(flow) and with_factor > max(_LEARNT, max(rates, default=0.0) + _BY_RATE)
    if with_factor > own + _SPREAD and (divided or bound):
        sign = f"and the loss reads a {min(read)}" if divided else "and with no learning rate as much"
        yield Fault(
            0.8,
            f"The logits lie too close together for a sure answer: of guessing's loss one batch learnt by heart removes "
            f"{100 * own:.0f} %, with the logits times {spread.factor:g} {100 * with_factor:.0f} %, "
            f"{sign}. Expected: logits that may differ by 5 or more. Leave out what holds them together (a division, cosines or "
            "vectors of unit length, an activation), or multiply by a scale: 10 to 30, or a learnt one.",
            "give the loss logits without a division or bound, or multiply them by a scale (a temperature below 1)",
        )


def _undecided(loss: LossView) -> bool:
    """Is the first loss that of equal logits, as far as the number of classes is known?"""
    known = loss.classes or (2 if loss.kind == "bce_with_logits" else None)
    return known is None or abs(loss.value - math.log(known)) < _UNDECIDED


def _stands(flow: Flow) -> bool:
    """Does learning one batch by heart slow down to nothing?"""
    losses = next((e.losses for e in flow.experiments if e.lever == "none"), ())
    fifth = len(losses) // 5
    if fifth < 2:
        return False
    before, end = statistics.median(losses[-2 * fifth : -fifth]), statistics.median(losses[-fifth:])
    return abs(before - end) < _STANDS * abs(before)


def _of_classes(kind: str, feeding: str) -> Iterator[Fault]:
    """Losses that take raw logits."""
    if kind == "cross_entropy" and feeding in ("softmax", "sigmoid"):
        yield Fault(
            0.97,
            f"CrossEntropyLoss is given the output of a {feeding}. It expects raw logits and applies "
            f"log-softmax itself, so all logits lie in [0, 1] and the loss cannot fall to 0. Remove the {feeding}.",
            f"remove the {feeding} before the loss",
        )
    if kind == "log_softmax" and feeding == "softmax":
        yield Fault(
            0.95,
            "The loss takes log-softmax of the output of a softmax, as Categorical(logits=...) does: all logits lie in [0, 1], so "
            "that no answer can become sure. Expected: raw logits, or Categorical(probs=...) for probabilities. Remove the "
            "softmax.",
            "remove the softmax before the loss, or pass probabilities as Categorical(probs=...)",
        )
    if kind == "bce_with_logits" and feeding in ("softmax", "sigmoid"):
        yield Fault(
            0.97,
            f"BCEWithLogitsLoss is given the output of a {feeding}. It expects raw logits and applies the "
            f"sigmoid itself, so probabilities stay in [0.5, 0.73]. Remove the {feeding}, or use BCELoss.",
            f"remove the {feeding} before the loss",
        )


def _bounded(kind: str, feeding: str, classes: int, between: Limits | None) -> Iterator[Fault]:
    """Logits that can never be far enough apart for a sure answer."""
    if kind != "cross_entropy" or between is None or feeding in ("softmax", "sigmoid"):
        return
    low, high = between
    kept = math.log1p((classes - 1) * math.exp(low - high))
    if kept > _BOUNDED:
        yield Fault(
            0.88,
            f"CrossEntropyLoss is given the output of a {feeding}: all logits lie in [{low:.4g}, {high:.4g}], and with {classes} "
            f"classes even a perfect answer keeps a loss of {kept:.2g}. Expected: raw logits. Remove the {feeding}.",
            f"remove the {feeding} before the loss",
        )


def _of_probabilities(kind: str, feeding: str) -> Iterator[Fault]:
    """Losses that take logarithms of probabilities."""
    if kind == "nll" and feeding not in _LOGARITHMS:
        yield Fault(
            0.93,
            f"NLLLoss is given the output of a {feeding}. It expects log-probabilities; as it is, the loss has "
            "no lower bound and its gradient does not depend on how wrong the answer is. Use CrossEntropyLoss on "
            "the logits, or log_softmax before NLLLoss.",
            "use CrossEntropyLoss on raw logits",
        )
    if kind == "kl_div" and feeding in ("softmax", "sigmoid", "linear"):
        yield Fault(
            0.93,
            f"KLDivLoss is given the output of a {feeding}. It expects log-probabilities first and probabilities "
            "second; as it is, the loss is no divergence and does not end at equal distributions. Use "
            "F.kl_div(F.log_softmax(logits, dim=-1), target).",
            "give KLDivLoss log_softmax of the logits",
        )


@dataclass(frozen=True)
class Feeding(AbstractMismatch):
    """An activation that the loss applies itself, or one that it needs and does not get."""

    def faults(self, flow: Flow) -> Iterator[Fault]:
        known = list(_wrongly_fed(flow))
        yield from known or _too_close(flow)

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        base, stuck = _flows.plain(), _flows.plain(stuck=True)
        fed = [
            ("cross_entropy", "linear"),
            ("cross_entropy", "log_softmax"),
            ("nll", "log_softmax"),
            ("kl_div", "log_softmax"),
            ("bce", "sigmoid"),
        ]
        changed = (
            *(replace(base.loss, kind=kind, feeding=op) for kind, op in fed),
            replace(base.loss, feeding="tanh", classes=2),
            replace(base.loss, feeding="clamp", limits=(-50.0, 50.0)),
            replace(base.loss, kind="other", terms=2, parts=tuple(fed)),
            replace(base.loss, normalized_axis=1, output_shape=(64, 10)),
        )
        begun = (base, stuck, _flows.lever(_beginning(stuck), "learning-rate", 10.0))
        return (*(replace(base, loss=one) for one in changed), *(_flows.lever(one, "logits", 10.0) for one in begun))

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        loss = base.loss
        changed = (
            replace(loss, feeding="softmax"),
            replace(loss, kind="bce_with_logits", feeding="sigmoid"),
            replace(loss, kind="nll", feeding="softmax"),
            replace(loss, kind="kl_div", feeding="softmax"),
            replace(loss, kind="other", terms=2, parts=(("mse", "linear"), ("cross_entropy", "softmax"))),
            replace(loss, feeding="linear", normalized_axis=0, output_shape=(64, 10)),
            replace(loss, feeding="tanh"),
            replace(loss, feeding="clamp", limits=(-1.0, 1.0)),
        )
        return (*(replace(base, loss=one) for one in changed), _flows.lever(_beginning(base), "logits", 10.0))


def _beginning(flow: Flow) -> Flow:
    """Learning one batch by heart ends a third of the way."""
    third = replace(flow.experiments[0], losses=tuple(_flows.FLOOR * (1 - 0.33 * min(1.0, i / 10)) for i in range(40)))
    return replace(flow, experiments=(third,))
