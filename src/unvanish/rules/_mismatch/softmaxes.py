"""Softmaxes along an axis that is not the alternatives'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from unvanish import reading
from unvanish.rules import _flows
from unvanish.rules._mismatch.fault import AbstractMismatch, Fault
from unvanish.types import Flow, LossView, Site


@dataclass(frozen=True)
class Softmaxes(AbstractMismatch):
    """Over the samples, over those who ask, over a single entry; and a rectifier in place of any."""

    attends: float = 0.5

    def faults(self, flow: Flow) -> Iterator[Fault]:
        yield from self._over_samples(flow)
        yield from self._over_queries(flow)
        yield from self._constant_output(flow)

    def _over_samples(self, flow: Flow) -> Iterator[Fault]:
        """A softmax within the network whose axis is the batch: the only one of that length."""
        size, target = flow.batch_size or 0, flow.loss.target_shape or ()
        along = [
            s for s in flow.sites if s.kind == "softmax" and s.normalized_count == size > 1 and len(s.shape) > 2
            and s.shape[0] == size and s.shape.count(size) == 1
        ]  # fmt: skip
        if along and target[:1] == (size,):
            yield Fault(
                0.9, f"The softmax at {along[0].label} runs over the samples of the batch (dim=0 of {along[0].shape}): the weights of "
                "one sample depend on what else is in the batch. Expected: a sum of 1 within each sample, over what it "
                "attends to. Use dim=-1.",
                "let the softmax run within each sample: dim=-1", along[0].label,
            )  # fmt: skip

    def _over_queries(self, flow: Flow) -> Iterator[Fault]:
        """Attention weights that sum to 1 over those who ask, not over what each of them attends to."""
        along = [s for s in flow.sites if s.kind == "softmax" and s.shape == flow.loss.crossed]
        if along and (reading.trains(flow) or 0.0) < self.attends:
            yield Fault(
                0.85, f"The softmax at {along[0].label}, of shape {along[0].shape}, makes the weights sum to 1 along one axis, and the "
                "product with the values sums along another: what each query gets is no average. Expected: weights that "
                "sum to 1 over what a query attends to. Use dim=-1 on scores of queries by keys.",
                "let the softmax run over the keys: dim=-1", along[0].label,
                "Vaswani et al. 2017, arXiv:1706.03762, equation 1",
            )  # fmt: skip

    def _constant_output(self, flow: Flow) -> Iterator[Fault]:
        shape, loss = flow.loss.output_shape, flow.loss
        one = loss.classes == 1 or (loss.feeding == "softmax" and shape is not None and shape[-1:] == (1,))
        if one:
            yield Fault(
                0.97, "A softmax over a single output is always 1, so the loss does not depend on the network. Expected: "
                "one output per class (2 for two classes), or a sigmoid with BCE for a single output.",
                "use two outputs, or one output with BCEWithLogitsLoss",
            )  # fmt: skip
        single = [s for s in flow.sites if s.kind == "softmax" and s.op == "softmax" and s.normalized_count == 1]
        if single and not one and not reading.learns(flow):
            yield Fault(
                0.95, f"The softmax at {single[0].label} runs over an axis of size 1 of {single[0].shape}: all it puts out is 1, "
                "and no gradient passes. Expected: the axis that holds the alternatives. Choose another dim, or squeeze first.",
                "let the softmax run over the axis of the alternatives: another dim", single[0].label,
            )  # fmt: skip
        rectified = [
            s for s in reading.activations(flow)[-1:] if loss.feeding in ("relu", "relu6") and s.dead is not None
        ]
        if loss.kind in ("cross_entropy", "bce_with_logits") and rectified and not reading.learns(flow):
            yield Fault(
                0.9, f"The logits pass a {loss.feeding} before the loss: negative logits become 0 and pass no gradient "
                f"({100 * (rectified[0].dead or 0):.0f} % of the outputs are dead). Expected: the raw output of the last "
                "linear layer. Remove the activation after it.",
                f"remove the {loss.feeding} after the last layer", rectified[0].label,
            )  # fmt: skip

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        return (_attending(6), replace(_attending(6), loss=replace(_flows.plain().loss, crossed=(64, 6, 6))))

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        alone = Site("choose", "softmax", "softmax", 99, (32, 6, 1), normalized_count=1)
        weights = replace(alone, shape=(32, 6, 6), normalized_count=6)
        crossed = replace(_with(base, weights), loss=replace(base.loss, crossed=(32, 6, 6)))
        rectified = replace(base, loss=replace(base.loss, feeding="relu"), sites=_flows.plain(activation="relu").sites)
        return (_attending(64), _with(base, alone), crossed, rectified)


def _with(flow: Flow, site: Site) -> Flow:
    return replace(flow, sites=(*flow.sites, site))


def _attending(count: int) -> Flow:
    """Attention weights of 64 samples with six places, which sum to 1 over so many."""
    base = _flows.plain(loss=LossView(2.3, "cross_entropy", 2.3, 10, target_shape=(64,)))
    return _with(base, Site("encoder:softmax", "softmax", "softmax", 99, (64, 6, 6), normalized_count=count))
