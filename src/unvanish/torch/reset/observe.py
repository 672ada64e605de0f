"""The passes of a check: units measured; then, only where some are reset, what their readers read and what came out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.reset.groups import ActivationPlan, NormPlan, Reader
from unvanish.torch.reset.layout import Layout
from unvanish.torch.reset.passes import Signature, data_of, empty_batch, run
from unvanish.torch.reset.ranks import summed
from unvanish.torch.reset.slopes import Family, family_of
from unvanish.torch.reset.statistics import UnitStatistics, measure, together
from unvanish.torch.wiring import Op
from unvanish.torch.wiring import together as one_op

Moments = tuple[Tensor, Tensor]


class UnitWatch:
    """Measures the activations of groups of units in one pass."""

    def __init__(self, layout: Layout, values_read: bool) -> None:
        plans = [plan for group in layout.groups for plan in group.activations]
        self._signature = layout.signature
        self._layers = {plan.op: group.layer for group in layout.groups for plan in group.activations}
        self._plans = {plan.op: plan for plan in plans}
        self._needed = {plan.source for plan in plans if plan.before_is_kept}
        self._members = {index for plan in plans for index in plan.members}
        self._values_read = values_read
        self._families: dict[int, Family] = {}  # by activation: found out once
        self._kept: dict[int, Tensor] = {}
        self._ops: dict[int, Op] = {}
        self._statistics: dict[str, list[UnitStatistics]] = {}

    def measure(self, model: nn.Module, inputs: Any) -> dict[str, UnitStatistics]:
        """Statistics by layer, of what this rank was given."""
        self._statistics = {layer: [] for layer in self._layers.values()}
        self._kept.clear()
        self._ops.clear()
        run(model, inputs, self._see, like=self._signature)
        return {layer: together(calls) for layer, calls in self._statistics.items()}

    def _see(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if op.index in self._members:
            self._ops[op.index] = op
        plan = self._plans.get(op.index)
        if plan is not None:
            before = self._kept[plan.source] if plan.before_is_kept else data_of(args, kwargs)
            if not before.numel():
                raise empty_batch(self._layers[op.index])
            # put together anew each time: a number in the user's function may be another than in the last pass
            whole = one_op([self._ops[index] for index in plan.members], plan.source) if plan.members else op
            self._measure(plan, whole, before, result)
        if op.index in self._needed and isinstance(result, Tensor):
            self._kept[op.index] = result.clone()

    def _measure(self, plan: ActivationPlan, op: Op, before: Tensor, result: Any) -> None:
        family = self._families.get(op.index)
        if family is None:
            family = self._families[op.index] = family_of(op, before)
        after = result if self._values_read or family.competing else None
        self._statistics[self._layers[op.index]].append(measure(op, family, before, after, plan.axis))


@dataclass(frozen=True, slots=True)
class Readings:
    """What the readers of units read on average, the calls they are, and the model's output.

    Attributes:
        means: by index of the reading call: its mean input, as a batch of one, over the batches of all ranks.
        calls: by the same index.
        outputs: what the model returned, copied.
    """

    means: dict[int, Tensor]
    calls: dict[int, Op]
    outputs: list[Tensor]


def readings(model: nn.Module, inputs: Any, readers: tuple[Reader, ...], like: Signature) -> Readings:
    """One pass that keeps the mean input of each of these readers."""
    wanted = {reader.op: reader for reader in readers}
    sums: dict[int, Tensor] = {}
    counts: dict[int, Tensor] = {}
    calls: dict[int, Op] = {}

    def on_op(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        reader = wanted.get(op.index)
        if reader is None:
            return
        data = next(tensor for tensor in (*args, *kwargs.values()) if _is_data(tensor, reader, op))
        rows = data.reshape(-1, *data.shape[reader.plan.channel_axis :])
        sums[op.index] = rows.sum(dim=0, dtype=torch.float64)
        counts[op.index] = sums[op.index].new_full((1,), len(rows))
        calls[op.index] = op

    _, outputs = run(model, inputs, on_op, like=like)
    order = sorted(sums)
    merged = summed([sums[index] for index in order] + [counts[index] for index in order])
    totals, numbers = merged[: len(order)], merged[len(order) :]
    means = {i: (total / number).unsqueeze(0) for i, total, number in zip(order, totals, numbers, strict=True)}
    return Readings(means, calls, _floating(outputs))


def _is_data(value: Any, reader: Reader, op: Op) -> bool:
    """Is this the data of a reading call?  Alone ``addmm`` takes its bias first, which has one axis."""
    return isinstance(value, Tensor) and (op.name != "addmm" or value.ndim > 1)


def aftermath(
    model: nn.Module, inputs: Any, norms: tuple[NormPlan, ...], like: Signature
) -> tuple[dict[int, Moments], list[Tensor]]:
    """One pass after the resets: mean and variance of the units at these normalisations, and the model's output."""
    wanted = {norm.op: norm for norm in norms}
    found: dict[int, list[Tensor]] = {}

    def on_op(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        norm = wanted.get(op.index)
        if norm is not None:
            data = data_of(args, kwargs).double()
            found[op.index] = [norm.axis.count(data), norm.axis.sum(data), norm.axis.sum(data.square())]

    _, outputs = run(model, inputs, on_op, like=like)
    order = sorted(found)
    merged = summed([part for index in order for part in found[index]])
    moments = {index: _moments(*merged[3 * k : 3 * k + 3]) for k, index in enumerate(order)}
    return moments, _floating(outputs)


def _moments(count: Tensor, total: Tensor, squares: Tensor) -> Moments:
    """Mean and unbiased variance, as BatchNorm keeps them."""
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0) * count / (count - 1).clamp(min=1)


def output_change(before: list[Tensor], after: list[Tensor]) -> float:
    """Root mean square of the change of all outputs, relative to that of the outputs; over all ranks."""
    moved = torch.stack([(b - a).square().sum() for b, a in zip(before, after, strict=True)]).sum()
    size = torch.stack([b.square().sum() for b in before]).sum()
    change, total = (float(part) for part in summed([moved.reshape(1), size.reshape(1)]))
    return math.sqrt(change / total if total > 0 else change)


def _floating(outputs: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().to(torch.float64, copy=True) for tensor in outputs if tensor.is_floating_point()]
