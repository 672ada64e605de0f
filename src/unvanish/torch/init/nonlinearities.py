"""Elementwise functions between layers, of one op or of many, as functions of one number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from unvanish.theory import Array, Elementwise, mirror_slope
from unvanish.torch.wiring import Op, Wiring

_BINARY = frozenset({"add", "sub", "mul", "div", "truediv", "iadd", "isub", "imul", "maximum", "minimum"})
_PROBE = torch.tensor([-2.5, -1.0, -0.3, 0.0, 0.2, 0.9, 3.0], dtype=torch.float64)


@dataclass(frozen=True)
class Nonlinearity:
    """A function phi with ``output = phi(input)`` unit by unit.

    Attributes:
        source: op whose output it reads.
        exit: op whose output is phi's value.
        name: of its ops, such as "tanh" or "sigmoid*mul" for a handwritten SiLU.
        alone: nothing else elementwise reads the same source, so the source can be scaled and shifted for it.
    """

    source: int
    exit: int
    name: str
    alone: bool
    _ops: tuple[Op, ...] = field(repr=False)
    _slope: float | None = field(repr=False, default=None)
    _learned: tuple[Tensor, ...] = field(repr=False, default=())

    @cached_property
    def phi(self) -> Elementwise:
        """The function on float64 arrays."""

        def on_arrays(u: Array) -> Array:
            with torch.no_grad():
                return np.asarray(self._value(torch.from_numpy(np.ascontiguousarray(u))).numpy(), dtype=np.float64)

        return on_arrays

    @cached_property
    def mirror(self) -> float | None:
        """The k of ``phi(x) - phi(-x) = k x``."""
        return mirror_slope(self.phi)

    @cached_property
    def straight(self) -> bool:
        """Whether phi is a straight line, such as a multiplication by a number."""
        x = np.linspace(-5, 5, 101)
        y = self.phi(x)
        return bool(np.allclose(y, y[50] + (y[100] - y[50]) / 5 * x, rtol=1e-6, atol=1e-9))

    def mean_slope(self, alpha: float, beta: float) -> float:
        """Mean of the slope's absolute value over inputs with this standard deviation and mean."""
        z = np.linspace(-8, 8, 4001)
        middle = (z[1:] + z[:-1]) / 2
        weight = np.exp(-0.5 * middle**2)
        slopes = np.abs(np.diff(self.phi(alpha * z + beta))) / (alpha * np.diff(z))
        return float(weight @ slopes / weight.sum())

    @property
    def members(self) -> frozenset[int]:
        """The ops it is made of."""
        return frozenset(op.index for op in self._ops)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for nonlinearities that are the same function."""
        learned = tuple(tuple(p.detach().flatten().tolist()) for p in self._learned)
        return (*((op.name, repr(sorted(op.arguments.items(), key=str))) for op in self._ops), self._slope, learned)

    def _value(self, u: Tensor) -> Tensor:
        """Of parameters per unit, the mean over the units."""
        shape = _common_shape(self._learned)
        values = {self.source: _spread_out(u, shape)}
        for op in self._ops:
            values[op.index] = _evaluate(op, [values[i] for i in op.inputs], self._slope)
        return values[self.exit].detach().double().reshape(len(u), -1).mean(dim=1)


def nonlinearities(wiring: Wiring, model: nn.Module) -> list[Nonlinearity]:
    """All maximal elementwise functions of one op's output, in execution order of their exits."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    slopes = {op.index: _slope_of(op, parameters) for op in wiring.ops}
    learned = {op.index: _learned(op, parameters) for op in wiring.ops}
    pointwise = [_is_pointwise(op, slopes[op.index], learned[op.index]) for op in wiring.ops]
    found: list[Nonlinearity] = []
    taken: set[int] = set()
    for source in (op.index for op in wiring.ops):
        if source in taken:
            continue
        inside = _region(wiring, source, pointwise)
        taken |= inside
        exits = [i for i in inside if any(r not in inside for r in wiring.readers(i)) or not wiring.readers(i)]
        for last in exits:
            ops = tuple(wiring.ops[i] for i in sorted(_needed(wiring, last, source)))
            slope = next((slopes[op.index] for op in ops if slopes[op.index] is not None), None)
            own = tuple(p for op in ops for p in learned[op.index])
            found.append(Nonlinearity(source, last, "*".join(op.name for op in ops), len(exits) == 1, ops, slope, own))
    return sorted(found, key=lambda n: n.exit)


def _region(wiring: Wiring, source: int, pointwise: list[bool]) -> set[int]:
    """Ops that compute an elementwise function of ``source`` and of nothing else."""
    inside: set[int] = set()
    waiting = set(wiring.readers(source))
    while waiting:
        index = min(waiting)
        waiting.remove(index)
        op = wiring.ops[index]
        if pointwise[index] and all(i == source or i in inside for i in op.inputs):
            inside.add(index)
            waiting.update(wiring.readers(index))
    return inside


def _needed(wiring: Wiring, last: int, source: int) -> Iterator[int]:
    stack, seen = [last], {source}
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            yield index
            stack.extend(wiring.ops[index].inputs)


def _slope_of(op: Op, parameters: dict[str, nn.Parameter]) -> float | None:
    """The negative slope of activations that have one per unit or draw it at random: its mean."""
    if op.name == "prelu" and (name := op.parameter("weight")) is not None:
        return float(parameters[name].detach().mean())
    if op.name == "rrelu":
        return (float(op.arguments.get("lower", 1 / 8)) + float(op.arguments.get("upper", 1 / 3))) / 2
    return None


def _learned(op: Op, parameters: dict[str, nn.Parameter]) -> tuple[Tensor, ...]:
    """The parameters that an op reads, or what it reads is computed from, unless :func:`_slope_of` stands for them."""
    names = [name for _, name in op.parameters] + [name for _, below in op.computed for name in below]
    return tuple(parameters[name] for name in names) if op.name not in ("prelu", "rrelu") else ()


def _common_shape(learned: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(*(p.shape for p in learned)))


def _spread_out(u: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Each number once for every unit."""
    return u.reshape(-1, *(1,) * len(shape)).expand(-1, *shape)


def _evaluate(op: Op, values: list[Tensor], slope: float | None) -> Tensor:
    if op.name in ("prelu", "rrelu") and slope is not None:
        return nn.functional.leaky_relu(values[0], slope)
    if len(values) == 1:
        return op.apply(values[0])
    result = op.function(values[0].clone(), *values[1:])
    assert isinstance(result, Tensor)
    return result


def _is_pointwise(op: Op, slope: float | None, learned: tuple[Tensor, ...]) -> bool:
    """Whether each element of the output depends on the same element of the input only: tried, not looked up."""
    if slope is not None:
        return True
    if not op.inputs or op.kind not in ("activation", "scale", "merge", "other"):
        return False
    if len(op.inputs) > 1:
        plain = not op.arguments and not learned
        return plain and len(op.inputs) == (2 if op.name in _BINARY else 3 if op.name == "where" else 0)
    try:
        probe = _spread_out(_PROBE, _common_shape(learned)).to(learned[0].device if learned else "cpu")
        value, turned = op.apply(probe), op.apply(probe.flip(0))
    except Exception:  # whatever a user's function says to a tensor of another shape: it is not elementwise
        return False
    return value.shape == probe.shape and torch.equal(value.flip(0), turned)
