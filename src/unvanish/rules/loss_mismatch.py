"""loss-mismatch: the loss and what it is given do not fit."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _mismatch
from unvanish.types import Evidence, Finding, Flow
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause

_KINDS: tuple[_mismatch.AbstractMismatch, ...] = (  # the first that holds is told
    _mismatch.Feeding(),
    _mismatch.Shapes(),
    _mismatch.Softmaxes(),
    _mismatch.Targets(),
    _mismatch.Upwards(),
    _mismatch.Terms(),
    _mismatch.Flat(),
    _mismatch.Collapsing(),
)


@dataclass(frozen=True)
class LossMismatch(AbstractRule):
    """The loss gets something else than it expects: probabilities for logits, (n, 1) for (n,), a range it cannot meet.

    Cross-entropy takes raw logits and applies log-softmax itself; a softmax before it squashes all logits into [0, 1],
    so that even a perfect answer keeps a loss of ln(1 + (C-1)/e) and the gradient through the first softmax is small.
    The same holds for a sigmoid before BCEWithLogits.  NLLLoss and KLDivLoss take log-probabilities, over the classes
    and not over the batch; binary cross-entropy takes targets in [0, 1].  Predictions of shape (n, 1) against targets of
    shape (n,) broadcast to (n, n): every prediction is pulled to the mean of all targets.  A view where a permute is meant
    mixes classes with positions, or samples with one another; so does a recurrent layer that takes the batch for
    time.  Targets outside the
    range of the last activation can never be met.  MSE on a saturated sigmoid has slope p(1-p) near zero.  So has
    log(1 - D(G(z))) where D is sure (Goodfellow et al. 2014, section 3).  A sum instead of a mean multiplies the
    gradient, and so the step, by the number of elements; a divergence that is summed beside an error that is averaged
    leaves nothing of the error (a VAE that puts out the mean of all images).

    Cure: hand the loss what its documentation says (logits, log-probabilities, equal shapes), and let the last
    activation fit the targets.
    """

    kinds: tuple[_mismatch.AbstractMismatch, ...] = _KINDS
    cause: ClassVar[Cause] = "loss-mismatch"
    title: ClassVar[str] = "the loss and what it is given do not fit"
    source: ClassVar[str] = (
        "PyTorch documentation of CrossEntropyLoss, BCEWithLogitsLoss, NLLLoss; Goodfellow et al. 2016, 6.2.2"
    )
    remedies: ClassVar[tuple[str, ...]] = (
        "give CrossEntropyLoss and BCEWithLogitsLoss raw logits, NLLLoss log-probabilities",
        "make the shapes of predictions and targets equal",
        "let the range of the last activation hold the targets",
    )

    def check(self, flow: Flow) -> Finding | None:
        fault = next(itertools.chain.from_iterable(kind.faults(flow) for kind in self.kinds), None)
        return None if fault is None else self._finding(flow, fault)

    def _finding(self, flow: Flow, fault: _mismatch.Fault) -> Finding:
        where = tuple(dict.fromkeys(name for name in ("loss", fault.place, flow.loss.feeding_name) if name))
        evidence = (
            Evidence("first loss", flow.loss.value, "", _normal(flow.loss.floor)),
            *reading.learning_evidence(flow),
        )
        source = fault.source or self.source
        return Finding(self.cause, where, fault.confidence, "high", evidence, fault.message, (fault.remedy,), source)

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        return tuple(flow for kind in _KINDS for flow in kind.healthy())

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        return tuple(flow for kind in _KINDS for flow in kind.sick())


def _normal(floor: float | None) -> str:
    return "falling" if floor is None else f"near {floor:.4g} (guessing), then below"
