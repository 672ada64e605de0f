"""Is an op a function of each element alone?  Tried with the numbers that reach it: no table knows what users write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from unvanish.theory import Array
from unvanish.torch.wiring import Op

Trial = tuple[Tensor, Tensor]

_KINDS = frozenset({"activation", "scale", "merge", "other"})
_EXTREMES = frozenset({"max", "min"})  # with a number they are no pools
_CASTS = frozenset({"clone", "contiguous", "detach", "to", "type", "type_as", "float", "double", "half", "bfloat16"})
_NUMBERS = (-2.5, -1.0, -0.3, 0.0, 0.2, 0.9, 3.0)


def is_cast(op: Op) -> bool:
    """Whether it hands its input on, but for the dtype."""
    return op.name in _CASTS


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Ops evaluated on other numbers than those of the forward pass, every axis behind the first being units.

    Attributes:
        parameters: of the model, by name.
        like: a tensor of the model's own dtype and device.
    """

    parameters: Mapping[str, nn.Parameter]
    like: Tensor

    @classmethod
    def of(cls, model: nn.Module) -> Evaluation:
        """For the ops of this model."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        floating = (p.detach() for p in parameters.values() if p.is_floating_point())
        return cls(parameters, next(floating, torch.zeros(())))

    def numbers(self, values: Array | Sequence[float]) -> Tensor:
        """As exact as the model's device has them."""
        exact = torch.from_numpy(np.array(values, dtype=np.float64))
        return exact.to(self.like.device, torch.float32 if self.like.device.type == "mps" else torch.float64)

    def probes(self) -> Trial:
        """Numbers, every one twice, in opposite orders; and the same with the first one another."""
        return self.numbers(_NUMBERS + _NUMBERS[::-1]), self.numbers((1.7, *_NUMBERS[1:], *_NUMBERS[::-1]))

    def value(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        """What an op makes of these inputs; of parameters per unit, for every unit."""
        slope = self._slope(op)
        if slope is not None:
            return nn.functional.leaky_relu(inputs[0], slope)
        shape = self._units(op, inputs)
        given = [_spread_out(x, shape) for x in inputs]
        try:
            result = _apply(op, given)
        except RuntimeError:  # what cannot be mixed with float64, such as heaviside with a constant in float32
            result = _apply(op, [x.to(self.like.dtype) if x.is_floating_point() else x for x in given])
        if is_cast(op) and result.is_floating_point() and given[0].is_floating_point():
            return given[0]  # not rounded
        return result.to(given[0].dtype) if result.is_floating_point() and given[0].is_floating_point() else result

    def tried(self, op: Op, inputs: Sequence[Trial]) -> Trial | None:
        """An op's values for the two probes, if each depends on the same element of the inputs alone, at any place."""
        if not _may_be(op):
            return None
        try:
            plain, moved = (self.value(op, [trial[which] for trial in inputs]) for which in (0, 1))
            shape = (len(inputs[0][0]), *self._units(op, [trial[0] for trial in inputs]))
        except Exception:  # whatever a user's function says to a tensor of another shape: it is not elementwise
            return None
        if plain.shape != shape or moved.shape != shape or plain.is_complex():
            return None
        half = len(_NUMBERS)
        alike = _same(plain[:half], plain[half:].flip(0)) and _same(plain[1:], moved[1:])
        return (plain, moved) if alike else None

    def _units(self, op: Op, inputs: Sequence[Tensor]) -> tuple[int, ...]:
        own = [] if self._slope(op) is not None else [tuple(self.parameters[name].shape) for name in _names(op)]
        return tuple(np.broadcast_shapes(*(tuple(x.shape[1:]) for x in inputs), *own))

    def _slope(self, op: Op) -> float | None:
        """The negative slope of activations that have one per unit or draw it at random: its mean."""
        if op.name == "prelu" and (name := op.parameter("weight")) is not None:
            return float(self.parameters[name].detach().mean())
        if op.name == "rrelu":
            return (float(op.arguments.get("lower", 1 / 8)) + float(op.arguments.get("upper", 1 / 3))) / 2
        return None


def _apply(op: Op, inputs: Sequence[Tensor]) -> Tensor:
    if op.name != "setitem":
        return op.apply(*inputs)
    result = inputs[0].clone()  # x[mask] = 0 returns nothing
    op.function(result, inputs[1], *op.arguments.values())
    return result


def _names(op: Op) -> list[str]:
    """The parameters that an op reads, or what it reads is computed from."""
    return [name for _, name in op.parameters] + [name for _, below in op.computed for name in below]


def _may_be(op: Op) -> bool:
    unseen = getattr(op.function, "__self__", None)
    if isinstance(unseen, nn.Module) and any(True for _ in unseen.buffers()):
        return False  # a trial could change them, and nobody saw what the module does inside
    known = op.kind in _KINDS or is_cast(op) or op.name in _EXTREMES
    return known and op.outputs == 1 and bool(op.inputs)


def _spread_out(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Each number once for every unit."""
    own = x.shape[1:]
    return x.reshape(len(x), *(1,) * (len(shape) - len(own)), *own).expand(len(x), *shape)


def _same(a: Tensor, b: Tensor) -> bool:
    """Up to rounding: the last elements of a tensor may be rounded otherwise than the first."""
    if torch.equal(a, b):
        return True
    size = float(a.double().nan_to_num(0, 0, 0).abs().max())
    within = 8 * torch.finfo(a.dtype).eps * size if a.is_floating_point() else 0.0
    return torch.allclose(a.double(), b.double(), rtol=0, atol=within, equal_nan=True)
