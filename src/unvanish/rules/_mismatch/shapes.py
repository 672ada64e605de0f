"""Shapes that do not belong together: broadcast, seen anew where axes should be exchanged, samples mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from unvanish import reading
from unvanish.rules import _flows
from unvanish.rules._mismatch.fault import AbstractMismatch, Fault
from unvanish.types import Flow


@dataclass(frozen=True)
class Shapes(AbstractMismatch):
    """Predictions and targets that meet in another order than they were made in, or rows that read one another."""

    trains: float = 0.3

    def faults(self, flow: Flow) -> Iterator[Fault]:
        yield from self._shapes(flow)
        yield from self._mixed(flow)

    def _shapes(self, flow: Flow) -> Iterator[Fault]:
        if flow.loss.broadcast is not None:
            output, target = flow.loss.broadcast
            yield Fault(
                0.97, f"Predictions of shape {output} against targets of shape {target} broadcast to "
                f"{(output[0], output[0])}: every prediction is compared with every target, and all are pulled to the mean. "
                "Expected: equal shapes. Use output.squeeze(-1) or target.unsqueeze(-1).",
                "squeeze the output or unsqueeze the target so that shapes are equal",
            )  # fmt: skip
        if flow.loss.reordered is not None and (reading.trains(flow) or 0.0) < self.trains:
            before, after = flow.loss.reordered
            yield Fault(
                0.93, f"The network's output of shape {before} is seen as {after} by a view or reshape before the loss. That "
                "moves no numbers: scores of different classes and positions are mixed up. Expected: exchanged axes. Use "
                "permute, transpose or movedim.",
                "exchange axes with permute or transpose, not with view or reshape",
            )  # fmt: skip

    def _mixed(self, flow: Flow) -> Iterator[Fault]:
        """Rows that the loss takes for separate samples read one another."""
        if flow.mixed is not None:
            yield Fault(
                0.9, f"The samples of a batch read one another: with another input in one row, other rows of the output "
                f"change, from {flow.mixed} on. To the loss each row is a sample of its own. Expected: rows that depend on "
                "their own input alone. Look there for batch_first=False (the default of nn.LSTM, nn.GRU and attention) on "
                "(batch, time, features), and for a view or reshape that joins the batch with another axis.",
                "set batch_first=True, or exchange axes with transpose or permute, not with view or reshape", flow.mixed,
                "Karpathy 2019, A Recipe for Training Neural Networks (use backprop to chart dependencies)",
            )  # fmt: skip

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        return (_flows.plain(),)

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        wide = replace(base.loss, kind="mse", broadcast=((64, 1), (64,)))
        turned = replace(base.loss, reordered=((64, 20, 10), (1280, 10)))
        return (replace(base, loss=wide), replace(base, loss=turned), replace(_flows.plain(), mixed="lstm"))
