"""Elementwise functions between layers, of one op or of many, as functions of one number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush

import numpy as np
import torch
from torch import Tensor, nn

from unvanish.theory import Array, Elementwise, mirror_slope
from unvanish.torch.init.trials import Evaluation, Trial, is_cast
from unvanish.torch.rehearsal.copies import preserved_randomness
from unvanish.torch.wiring import Op, Wiring

_AT_ONCE = 1 << 20  # numbers times units that a function is evaluated for
_LOOKS = np.concatenate([np.linspace(-6, 6, 49), [-40.0, -15.0, 15.0, 40.0]])


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
    _evaluation: Evaluation = field(repr=False)

    @cached_property
    def phi(self) -> Elementwise:
        """The function on float64 arrays; of parameters per unit, the mean over the units."""

        def on_arrays(u: Array) -> Array:
            with torch.no_grad():
                units = self._value(u[:1]).numel()
                parts = np.array_split(u, max(1, u.size * units // _AT_ONCE))
                means = [self._value(part).double().reshape(len(part), -1).mean(dim=1) for part in parts]
                return np.asarray(torch.cat(means).cpu().numpy(), dtype=np.float64)

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

    @cached_property
    def key(self) -> bytes:
        """Equal for nonlinearities that are the same function: its values, as constants in it have no names."""
        return self.phi(_LOOKS).tobytes()

    def _value(self, u: Array) -> Tensor:
        values = {self.source: self._evaluation.numbers(u)}
        for op in self._ops:
            values[op.index] = self._evaluation.value(op, [values[i] for i in op.inputs])
        return values[self.exit].detach()


def nonlinearities(wiring: Wiring, model: nn.Module) -> list[Nonlinearity]:
    """All maximal elementwise functions of one op's output, in execution order of their exits."""
    evaluation = Evaluation.of(model)
    found: list[Nonlinearity] = []
    taken: set[int] = set()
    with torch.no_grad(), preserved_randomness():
        for source in wiring.ops:
            if source.index in taken or source.outputs > 1:  # which of several outputs is read, nobody saw
                continue
            values = _region(wiring, source.index, evaluation)
            taken |= set(values)
            found += _functions(wiring, source.index, values, evaluation)
    return sorted(found, key=lambda one: one.exit)


def _functions(wiring: Wiring, source: int, values: dict[int, Trial], evaluation: Evaluation) -> list[Nonlinearity]:
    """Those of a region that end in numbers: a mask that others read is no signal."""
    inside = _without_loose_casts(wiring, values)
    exits = [i for i in sorted(inside) if not wiring.readers(i) or not inside.issuperset(wiring.readers(i))]
    found = []
    for last in exits:
        ops = tuple(wiring.ops[i] for i in sorted(_needed(wiring, last, source)))
        if values[last][0].is_floating_point() and not all(is_cast(op) for op in ops):
            name = "*".join(op.name for op in ops)
            found.append(Nonlinearity(source, last, name, len(exits) == 1, ops, evaluation))
    return found


def _without_loose_casts(wiring: Wiring, values: dict[int, Trial]) -> set[int]:
    """Copies at the end are left out: kept for later, or on the way to the next layer, they are no function."""
    inside = set(values)
    for index in sorted(values, reverse=True):
        op = wiring.ops[index]
        numbers = all(i not in values or values[i][0].is_floating_point() for i in op.inputs)  # not made of a mask
        if is_cast(op) and numbers and not inside.intersection(wiring.readers(index)):
            inside.remove(index)
    return inside


def _region(wiring: Wiring, source: int, evaluation: Evaluation) -> dict[int, Trial]:
    """Ops that compute an elementwise function of ``source`` and of nothing else, with their values for the probes."""
    values = {source: evaluation.probes()}
    waiting = list(wiring.readers(source))
    heapify(waiting)
    while waiting:
        op = wiring.ops[heappop(waiting)]
        if op.index in values or not all(index in values for index in op.inputs):
            continue
        trial = evaluation.tried(op, [values[index] for index in op.inputs])
        if trial is not None:
            values[op.index] = trial
            for reader in wiring.readers(op.index):
                heappush(waiting, reader)
    return {index: trial for index, trial in values.items() if index != source}


def _needed(wiring: Wiring, last: int, source: int) -> Iterator[int]:
    stack, seen = [last], {source}
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            yield index
            stack.extend(wiring.ops[index].inputs)
