"""Which entries of a weight make a unit, and which read it: for linear, grouped and transposed convolutions alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unvanish.torch.wiring import Op

# where products have their weight, their bias, and the weight its outputs
_ROLES = {"linear": ("weight", "bias", 0), "addmm": ("mat2", "input", 1), "matmul": ("other", "", 1)}
_ROLES |= {"mm": ("mat2", "", 1)}


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """How a layer's weight is laid out.

    Attributes:
        weight: full name of the parameter.
        bias: of the bias, None where there is none.
        out_axis: 0 where outputs come first (Linear, Conv), 1 where inputs do (ConvTranspose, ``addmm``, ``x @ W``, a
            Linear's weight read backwards by a tied decoder).
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


def plan_of(op: Op, tensors: list[Tensor], parameters: Mapping[str, Tensor]) -> WeightPlan | None:
    """How the weight of a linear or convolutional call is laid out; None for a call whose layout is not known.

    Args:
        op: the call.
        tensors: its arguments that are tensors.
        parameters: of the model, by full name; one of them, or its transpose, has to be the weight.
    """
    role, bias, out_axis = _ROLES.get(op.name, ("weight", "bias", int(op.kind == "transposed_convolution")))
    found = _weight(op, role, tensors, parameters)
    scaled = op.name == "addmm" and (op.arguments.get("beta", 1) != 1 or op.arguments.get("alpha", 1) != 1)
    if found is None or scaled:
        return None
    name, turned = found
    spatial = parameters[name].ndim - 2
    groups = int(op.arguments.get("groups", 1))
    if (op.name in _ROLES and spatial) or (op.kind == "linear" and op.name not in _ROLES):
        return None
    return WeightPlan(name, op.parameter(bias), out_axis ^ turned, groups, -1 - spatial)


def _weight(op: Op, role: str, tensors: list[Tensor], parameters: Mapping[str, Tensor]) -> tuple[str, bool] | None:
    """Name of the one weight a call has, and is its transpose used instead of it?"""
    own = [(r, name) for r, name in op.parameters if parameters[name].ndim > 1]
    if len(own) + len(op.computed) != 1:
        return None
    if own:
        return (own[0][1], False) if own[0][0] == role else None
    computed, names = op.computed[0]
    if computed != role or len(names) != 1 or parameters[names[0]].ndim != 2:
        return None
    return (names[0], True) if any(_is_transpose(tensor, parameters[names[0]]) for tensor in tensors) else None


def _is_transpose(tensor: Tensor, parameter: Tensor) -> bool:
    """Is it the parameter's own memory, rows for columns, as a tied decoder reads it?"""
    if tensor.ndim != 2 or tensor.layout != torch.strided or tensor.data_ptr() != parameter.data_ptr():
        return False
    turned = parameter.t()
    return tensor.shape == turned.shape and tensor.stride() == turned.stride()


def _entries(weight: Tensor, groups: int, axis: int, features: Tensor) -> Tensor:
    """Features lie along ``axis`` of each group's block, and the groups' blocks along axis 0.

    The weight's axis 0 runs over all groups, its axis 1 within one: a feature is named (group, place in the group).
    """
    first, second = weight.shape[0] // groups, weight.shape[1]
    shape = (groups, first, 1) if axis == 0 else (groups, 1, second)
    block = features.reshape(shape).expand(groups, first, second).reshape(groups * first, second)
    ones = (1,) * (weight.ndim - 2)
    return block.reshape(*block.shape, *ones).expand(weight.shape)
