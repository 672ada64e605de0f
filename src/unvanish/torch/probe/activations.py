"""Dead and saturated units, from the derivative of the activation at the values the network really had.

An autograd node called on ones returns its own derivative, whatever the activation: no table of formulas.  Where the
node keeps its output and its kernel can be called by name, many of equal shape are derived in one call of that kernel.
A unit is dead when its derivative is zero on all samples seen; an element is saturated when its derivative has
fallen below 5 % of the activation's largest slope (tanh beyond 2.2, sigmoid beyond 4.4 before the activation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.probe import small
from unvanish.torch.probe.buffers import QUEUE_BYTES, Buffers
from unvanish.torch.probe.frozen import maker
from unvanish.torch.probe.graph import Vertex
from unvanish.torch.probe.moments import MomentQueue, batch_axis
from unvanish.torch.probe.saved import readable

SATURATING = {"tanh": 1.0, "sigmoid": 0.25, "hardtanh": 1.0, "hardsigmoid": 1 / 6, "relu6": 1.0, "softsign": 1.0}
_RISING = {"tanh", "sigmoid", "relu", "relu6", "leaky_relu", "hardtanh", "hardsigmoid", "elu", "selu", "softplus"}
FLAT_SHARE = 0.05
NO_SLOPE = 1e-6  # a derivative below this passes nothing in float32 training

_aten: Any = torch.ops.aten  # resolved once: the look-up costs more than the call
_tanh, _sigmoid = _aten.tanh_backward.grad_input, _aten.sigmoid_backward.grad_input
_relu = _aten.threshold_backward.grad_input
# the kernels of the nodes that keep their output: (ones, outputs, where to put the derivatives)
DERIVATIVES: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "Tanh": lambda ones, kept, out: _tanh(ones, kept, grad_input=out),
    "Sigmoid": lambda ones, kept, out: _sigmoid(ones, kept, grad_input=out),
    "Relu": lambda ones, kept, out: _relu(ones, kept, 0, grad_input=out),
}


@dataclass(frozen=True, slots=True)
class Units:
    """Which units of one activation were alive on at least one sample, and the share of saturated elements.

    ``living[row]`` tells of each unit whether it was; the rows around it belong to other activations.
    """

    living: Tensor
    row: int
    saturated: float | None
    dead: float

    @property
    def alive(self) -> Tensor:
        """The units whose derivative was not zero on all samples."""
        return self.living[self.row]


_units = maker(Units)
_Kind = tuple[str, bool, tuple[int, ...], torch.dtype, torch.device, int]


class _Group:
    """Activations that wait to be measured together: their values, keys, and the numbers of outputs to be shown."""

    __slots__ = ("keys", "length", "numbers", "values")

    def __init__(self, like: Tensor) -> None:
        self.length = Buffers.length(like)
        self.keys: list[int] = []
        self.numbers: list[int] = []
        self.values: list[Tensor] = []

    def clear(self) -> None:
        self.keys.clear()
        self.numbers.clear()
        self.values.clear()


class UnitQueue:
    """Measures activations; those of equal shape and op together."""

    def __init__(self, outputs: MomentQueue) -> None:
        """``outputs`` measures kept outputs, which are read here anyway."""
        self._outputs = outputs
        self._waiting: dict[_Kind, _Group] = {}
        self._done: dict[int, Units] = {}
        self._ones: dict[tuple[object, ...], Tensor] = {}
        self._kept, self._slopes = Buffers(), Buffers()

    def add(self, key: int, vertex: Vertex, channel: bool) -> None:
        """Queue one activation; ``channel`` = its units lie along axis 1 (it follows a convolution)."""
        slope = self._derivative(vertex)
        if slope is not None:
            self._queue(key, -1, vertex.op, slope, channel)

    def add_output(self, key: int, number: int, op: str, output: Tensor, channel: bool) -> None:
        """Queue one activation by the output it kept; ``number`` >= 0 = show this output under this number as well."""
        self._queue(key, number, op, output, channel, kept=True)

    def finish(self) -> dict[int, Units]:
        """Measure what still waits and return key -> Units."""
        for kind, group in self._waiting.items():
            if group.keys:
                self._flush(kind, group)
        self._waiting.clear()
        self._ones.clear()
        self._kept.clear()
        self._slopes.clear()
        return self._done

    def _queue(self, key: int, number: int, op: str, values: Tensor, channel: bool, *, kept: bool = False) -> None:
        shape = values.shape
        axis = 1 if channel and len(shape) > 2 else len(shape) - 1
        kind = (op, kept, shape, values.dtype, values.device, axis)
        group = self._waiting.get(kind)
        if group is None:
            group = self._waiting[kind] = _Group(values)
        group.keys.append(key)
        group.numbers.append(number)
        group.values.append(values)
        if len(group.keys) == group.length:
            self._flush(kind, group)

    def _derivative(self, vertex: Vertex) -> Tensor | None:
        """phi' at the saved input; None where the values were not kept (checkpointing recomputes them only once)."""
        if not vertex.shape or 0 in vertex.shape or not readable(vertex):
            return None
        meta = vertex.node._input_metadata[0]
        ones = self._one(vertex.shape, meta.dtype, meta.device)
        slope = vertex.node(ones)
        slope = slope[0] if isinstance(slope, tuple) else slope
        if not isinstance(slope, Tensor) or slope.shape != ones.shape:
            return None
        return slope.clone() if slope.data_ptr() == ones.data_ptr() else slope.detach()

    def _one(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """One element seen as many: it takes no memory."""
        key = (shape, dtype, device)
        ones = self._ones.get(key)
        if ones is None:
            ones = self._ones[key] = torch.ones((), dtype=dtype, device=device).expand(shape)
        return ones

    def _flush(self, kind: _Kind, group: _Group) -> None:
        if small.fit(group.values):
            self._measure_small(kind, group)
        else:
            self._measure_stacked(kind, group)
        group.clear()

    def _measure_small(self, kind: _Kind, group: _Group) -> None:
        """Where they lie."""
        op, kept, shape, *_, axis = kind
        flat = FLAT_SHARE * SATURATING.get(op, 0.0)
        if kept:
            samples = batch_axis(shape, self._outputs.batch_size)
            measured, peaks, shares = small.outputs(op, group.values, samples, axis, flat, NO_SLOPE)
            self._outputs.add_measured(group.numbers, measured)
        else:
            peaks, shares = small.slopes(group.values, axis, flat, NO_SLOPE)
        self._store(op, group.keys, peaks, shares)

    def _store(self, op: str, keys: list[int], peaks: Tensor, shares: Iterable[Sequence[float]]) -> None:
        """``shares`` of saturated elements and of dead units."""
        saturates, shares = op in SATURATING, list(shares)
        all_alive = self._one((1, *peaks.shape[1:]), torch.bool, peaks.device)
        lively = _units(all_alive, 0, 0.0 if saturates else None, 0.0)  # as most are, in one object for all
        living = alive(peaks) if any(dead for _, dead in shares) else all_alive.expand(peaks.shape)
        for row, (key, (low, dead)) in enumerate(zip(keys, shares, strict=True)):
            plain = not (dead or (low and saturates))
            self._done[key] = lively if plain else _units(living, row, low if saturates else None, dead)

    def _measure_stacked(self, kind: _Kind, group: _Group) -> None:
        """Side by side."""
        op, kept, *_, axis = kind
        stack = self._side_by_side(group, kept)
        peaks: Tensor | None = None
        flat: list[float] = [0.0] * len(stack)
        for part in _pieces(stack, axis) if kept else (stack,):
            slopes = self._derived(op, part) if kept else part
            if op not in _RISING:
                slopes.abs_()
            rest = [dim for dim in range(1, slopes.ndim) if dim != axis + 1]
            highest = slopes.amax(dim=rest) if rest else slopes.clone()
            peaks = highest if peaks is None else torch.maximum(peaks, highest)
            if op in SATURATING:
                low = slopes.lt_(FLAT_SHARE * SATURATING[op]).flatten(1)  # in place: 0 and 1 as floats
                flat = [a + b for a, b in zip(flat, low.sum(dim=1, dtype=torch.float32).tolist(), strict=True)]
        assert peaks is not None, "a stack has a piece"
        count = stack[0].numel()
        self._store(op, group.keys, peaks, zip([share / count for share in flat], _dead(peaks), strict=True))

    def _side_by_side(self, group: _Group, kept: bool) -> Tensor:
        """What waits as one tensor, which is ours to overwrite, or kept outputs, which are shown."""
        if len(group.keys) == 1:
            stack = group.values[0].unsqueeze(0)  # not copied: it is ours already, or only read
        else:
            stack = (self._kept if kept else self._slopes).stack(group.values)
        shown = [i for i, number in enumerate(group.numbers) if number >= 0]
        if len(shown) == len(stack):
            scratch = self._slopes.like(stack) if len(stack) > 1 else None
            self._outputs.add_stack(group.numbers.copy(), stack, scratch)
        elif shown:
            self._outputs.add_stack([group.numbers[i] for i in shown], stack[shown], None)
        return stack

    def _derived(self, op: str, outputs: Tensor) -> Tensor:
        """The derivatives at kept outputs, in room of ours."""
        slopes = self._slopes.like(outputs)
        DERIVATIVES[op.capitalize()](self._one((), outputs.dtype, outputs.device), outputs, slopes)
        return slopes


def alive(peaks: Tensor) -> Tensor:
    """Of each largest derivative, whether it is not zero; one that is not a number is not zero."""
    return (peaks <= NO_SLOPE).logical_not_()


def _pieces(stack: Tensor, axis: int) -> tuple[Tensor, ...]:
    """A single large tensor in pieces along its first axis, so that their derivatives need little room."""
    length = stack.shape[1]
    size = stack.numel() * stack.element_size()
    if len(stack) > 1 or axis == 0 or size <= QUEUE_BYTES:
        return (stack,)
    pieces: tuple[Tensor, ...] = stack.split(max(1, length * QUEUE_BYTES // size), dim=1)
    return pieces


def _dead(peaks: Tensor) -> list[float]:
    """Per row the share of units whose largest derivative is zero."""
    rows, count = len(peaks), peaks[0].numel()
    if float(peaks.amin()) > NO_SLOPE:  # the usual case; with a NaN it is not known
        return [0.0] * rows
    flat: list[int] = (peaks <= NO_SLOPE).flatten(1).count_nonzero(dim=1).tolist()
    return [one / count for one in flat]
