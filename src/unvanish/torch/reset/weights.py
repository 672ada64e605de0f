"""Which entries of a weight make a unit, and which read it: for linear, grouped and transposed convolutions alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unvanish.torch.wiring import Op


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """How a layer's weight is laid out.

    Attributes:
        weight: full name of the parameter.
        bias: of the bias, None where there is none.
        out_axis: 0 where outputs come first (Linear, Conv), 1 where inputs do (ConvTranspose, ``addmm``).
        groups: of a convolution.
        channel_axis: axis of the layer's input and output along which its features lie, counted from the end.
    """

    weight: str
    bias: str | None
    out_axis: int
    groups: int
    channel_axis: int

    def outputs(self, weight: Tensor) -> int:
        """How many units the layer has."""
        return weight.shape[self.out_axis] * (self.groups if self.out_axis == 1 else 1)

    def making(self, weight: Tensor, units: Tensor) -> Tensor:
        """Bool of the weight's shape: the entries that make the chosen outputs."""
        return _entries(weight, self.groups, self.out_axis, units)

    def reading(self, weight: Tensor, features: Tensor) -> Tensor:
        """Bool of the weight's shape: the entries that read the chosen inputs."""
        return _entries(weight, self.groups, 1 - self.out_axis, features)

    def sum_by_input(self, weight: Tensor) -> Tensor:
        """(inputs,) float64: sum of the entries that read each input."""
        return self._sums(weight, 1 - self.out_axis)

    def sum_by_output(self, weight: Tensor) -> Tensor:
        """(outputs,) float64: sum of the entries that make each output."""
        return self._sums(weight, self.out_axis)

    def _sums(self, weight: Tensor, axis: int) -> Tensor:
        block = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return block.sum(dim=(2 - axis, 3), dtype=torch.float64).flatten()

    def fan_in(self, weight: Tensor) -> int:
        """How many inputs an output sums."""
        kernel = weight[0, 0].numel()
        return kernel * (weight.shape[1] if self.out_axis == 0 else weight.shape[0] // self.groups)


def plan_of(op: Op, weight_dims: int) -> WeightPlan | None:
    """How the weight of a linear or convolutional call is laid out; None for a call whose layout is not known."""
    spatial = weight_dims - 2
    if op.name == "linear" and weight_dims == 2:
        return _named(op, "weight", "bias", 0, -1)
    if op.name == "addmm" and op.arguments.get("beta", 1) == 1 and op.arguments.get("alpha", 1) == 1:
        return _named(op, "mat2", "input", 1, -1)
    if op.kind == "convolution":
        return _named(op, "weight", "bias", 0, -1 - spatial)
    if op.kind == "transposed_convolution":
        return _named(op, "weight", "bias", 1, -1 - spatial)
    return None


def _named(op: Op, weight: str, bias: str, out_axis: int, channel_axis: int) -> WeightPlan | None:
    name = op.parameter(weight)
    if name is None:
        return None
    groups = int(op.arguments.get("groups", 1))
    return WeightPlan(name, op.parameter(bias), out_axis, groups, channel_axis)


def _entries(weight: Tensor, groups: int, axis: int, features: Tensor) -> Tensor:
    """Features lie along ``axis`` of each group's block, and the groups' blocks along axis 0.

    The weight's axis 0 runs over all groups, its axis 1 within one: a feature is named (group, place in the group).
    """
    first, second = weight.shape[0] // groups, weight.shape[1]
    shape = (groups, first, 1) if axis == 0 else (groups, 1, second)
    block = features.reshape(shape).expand(groups, first, second).reshape(groups * first, second)
    ones = (1,) * (weight.ndim - 2)
    return block.reshape(*block.shape, *ones).expand(weight.shape)
