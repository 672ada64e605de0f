"""Targets that the loss does not take, or that the network cannot put out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from unvanish.rules import _flows
from unvanish.rules._mismatch.fault import AbstractMismatch, Fault
from unvanish.rules._mismatch.feeding import limits
from unvanish.types import Flow, Moments
from unvanish.vocabulary import DISTANCES


@dataclass(frozen=True)
class Targets(AbstractMismatch):
    """Signs and ranges."""

    outside: float = 0.05

    def faults(self, flow: Flow) -> Iterator[Fault]:
        yield from self._signs(flow)
        yield from self._range(flow)

    def _signs(self, flow: Flow) -> Iterator[Fault]:
        """A loss of margins, y * score, that is given 0 for one of the two classes."""
        loss = flow.loss
        if loss.kind in ("hinge", "soft_margin") and loss.target_range is not None and loss.target_range[0] >= 0:
            low, high = loss.target_range
            yield Fault(
                0.95, f"Targets lie in [{low:.4g}, {high:.4g}], but a margin loss takes -1 and 1: where the target is 0, the "
                "product with the score is 0, and the sample gives no gradient. Expected: a sign for each sample. Use 2 * target - 1.",
                "give the margin loss targets of -1 and 1: 2 * target - 1",
            )  # fmt: skip

    def _range(self, flow: Flow) -> Iterator[Fault]:
        loss = flow.loss
        if loss.kind in ("bce", "bce_with_logits") and loss.target_range is not None:
            low, high = loss.target_range
            if low < 0 or high > 1:
                yield Fault(
                    0.95, f"Targets lie in [{low:.4g}, {high:.4g}], but binary cross-entropy takes probabilities: outside of "
                    "[0, 1] it has no lower bound. Expected: targets of 0 and 1, or between. Scale them, or take another "
                    "loss (MSE, or SoftMarginLoss for -1 and 1).",
                    "scale the targets to [0, 1]",
                )  # fmt: skip
                return
        between = limits(loss)
        if loss.kind not in (*DISTANCES, "bce") or between is None or loss.target_range is None:
            return
        low, high = loss.target_range
        beyond = max(between[0] - low, high - between[1], 0.0)
        if beyond > self.outside * max(high - low, 1e-12):
            yield Fault(
                0.93, f"Targets lie in [{low:.4g}, {high:.4g}], but the last activation ({loss.feeding}) can only put out "
                f"[{between[0]:g}, {between[1]:g}]. Expected: a range that holds the targets. Remove the last activation, or "
                "scale the targets into its range.",
                f"remove the {loss.feeding} at the output, or scale the targets",
            )  # fmt: skip

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        base = _flows.plain()
        changed = (
            replace(base.loss, kind="bce_with_logits", target_range=(0.0, 1.0)),
            replace(base.loss, kind="hinge", target_range=(-1.0, 1.0)),
            replace(base.loss, kind="mse", feeding="sigmoid", target=Moments(64, 0.5, 0.4), target_range=(0.0, 1.0)),
        )
        return tuple(replace(base, loss=one) for one in changed)

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        changed = (
            replace(base.loss, kind="mse", feeding="sigmoid", target_range=(-2.0, 3.0)),
            replace(base.loss, kind="bce_with_logits", target_range=(-1.0, 1.0)),
            replace(base.loss, kind="hinge", target_range=(0.0, 1.0)),
            replace(base.loss, kind="mse", feeding="hardtanh", limits=(-1.0, 1.0), target_range=(-2.0, 3.0)),
        )
        return tuple(replace(base, loss=one) for one in changed)
