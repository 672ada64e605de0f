"""Dead and saturated units, from the derivative of the activation at the values the network really had.

An autograd node called on ones returns its own derivative, whatever the activation: no table of formulas.  Where the
node keeps its output and its kernel can be called by name, many of equal shape are derived in one call of that kernel.
A unit is dead when its derivative is zero on all samples seen; an element is saturated when its derivative has
fallen below 5 % of the activation's largest slope (tanh beyond 2.2, sigmoid beyond 4.4 before the activation).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.probe.buffers import Buffers
from unvanish.torch.probe.graph import Vertex

SATURATING = {"tanh": 1.0, "sigmoid": 0.25, "hardtanh": 1.0, "hardsigmoid": 1 / 6, "relu6": 1.0, "softsign": 1.0}
_RISING = {"tanh", "sigmoid", "relu", "relu6", "leaky_relu", "hardtanh", "hardsigmoid", "elu", "selu", "softplus"}
_FLAT_SHARE = 0.05
_ZERO = 1e-6  # a derivative below this passes nothing in float32 training
_REAL = frozenset({"float32", "float64", "float16", "bfloat16"})

_aten: Any = torch.ops.aten  # resolved once: the look-up costs more than the call
_tanh, _sigmoid = _aten.tanh_backward.grad_input, _aten.sigmoid_backward.grad_input
_relu = _aten.threshold_backward.grad_input
# the kernels of the nodes that keep their output: (ones, outputs, where to put the derivatives)
DERIVATIVES: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "Tanh": lambda ones, kept, out: _tanh(ones, kept, grad_input=out),
    "Sigmoid": lambda ones, kept, out: _sigmoid(ones, kept, grad_input=out),
    "Relu": lambda ones, kept, out: _relu(ones, kept, 0, grad_input=out),
}

_Key = tuple[str, bool, tuple[int, ...], torch.dtype, torch.device, int]


@dataclass(frozen=True, slots=True)
class Units:
    """Which units of one activation were alive on at least one sample, and the share of saturated elements."""

    alive: Tensor
    saturated: float | None
    dead: float


def units(alive: Tensor, saturated: float | None) -> Units:
    """Units by their mask; ``dead`` = share of units that were not alive."""
    return Units(alive, saturated, 1 - int(alive.count_nonzero()) / max(1, alive.numel()))


class UnitQueue:
    """Measures activations; those of equal shape and op together."""

    def __init__(self, outputs: Callable[[list[int], Tensor], None]) -> None:
        """``outputs`` is shown the kept outputs of ``add_output``, stacked, with the keys given there."""
        self._show = outputs
        self._waiting: dict[_Key, list[tuple[int, int, Tensor]]] = defaultdict(list)
        self._done: dict[int, Units] = {}
        self._ones: dict[tuple[object, ...], Tensor] = {}
        self._kept, self._slopes = Buffers(), Buffers()

    def add(self, key: int, vertex: Vertex, channel: bool) -> None:
        """Queue one activation; ``channel`` = its units lie along axis 1 (it follows a convolution)."""
        slope = self._derivative(vertex)
        if slope is not None:
            self._queue(key, -1, vertex, slope, channel)

    def add_output(self, key: int, number: int, vertex: Vertex, output: Tensor, channel: bool) -> None:
        """Queue one activation by the output it kept; ``number`` >= 0 = show this output under this key as well."""
        self._queue(key, number, vertex, output, channel, kept=True)

    def finish(self) -> dict[int, Units]:
        """Measure what still waits and return key -> Units."""
        for key, group in self._waiting.items():
            if group:
                self._flush(key, group)
        self._ones.clear()
        self._kept.clear()
        self._slopes.clear()
        return self._done

    def _queue(
        self, key: int, number: int, vertex: Vertex, values: Tensor, channel: bool, *, kept: bool = False
    ) -> None:
        shape = vertex.shape
        axis = 1 if channel and len(shape) > 2 else len(shape) - 1
        kind = (vertex.op, kept, shape, values.dtype, values.device, axis)
        group = self._waiting[kind]
        group.append((key, number, values))
        if len(group) >= Buffers.length(values):
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

    def _flush(self, kind: _Key, group: list[tuple[int, int, Tensor]]) -> None:
        op, kept, *_, axis = kind
        if kept:
            slopes = self._derived(kind, group)
        elif len(group) == 1:
            slopes = group[0][2].unsqueeze(0)  # ours already: not copied
        else:
            slopes = self._slopes.stack([values for _, _, values in group])
        if op not in _RISING:
            slopes.abs_()
        rest = [dim for dim in range(1, slopes.ndim) if dim != axis + 1]
        # a derivative that is not a number is not a dead one
        alive = ~((slopes.amax(dim=rest) if rest else slopes) <= _ZERO)
        shares: list[float | None] = [None] * len(group)
        if op in SATURATING:
            flat = slopes.lt_(_FLAT_SHARE * SATURATING[op]).reshape(len(group), -1)  # in place: 0 and 1 as floats
            shares = list(flat.mean(dim=1, dtype=torch.float32).tolist())
        count = alive[0].numel()
        living = alive.reshape(len(group), -1).count_nonzero(dim=1).tolist()
        for (key, _, _), mask, share, lived in zip(group, alive.unbind(0), shares, living, strict=True):
            self._done[key] = Units(mask, share, 1 - lived / count)
        group.clear()

    def _derived(self, kind: _Key, group: list[tuple[int, int, Tensor]]) -> Tensor:
        """The derivatives of a group of kept outputs, which are shown on the way."""
        op, _, shape, dtype, device, _ = kind
        outputs = self._kept.stack([values for _, _, values in group])
        slopes = self._slopes.like(outputs)
        DERIVATIVES[op.capitalize()](self._one(shape, dtype, device), outputs, slopes)
        shown = [i for i, (_, number, _) in enumerate(group) if number >= 0]
        if shown:
            self._show([group[i][1] for i in shown], outputs if len(shown) == len(group) else outputs[shown])
        return slopes


def readable(vertex: Vertex) -> bool:
    """Can the saved tensors of this node be read twice?  Checkpointing and offloading hooks allow it once."""
    if vertex.dtype not in _REAL:
        return False
    node = vertex.node
    try:
        for name in _saved_names(type(node)):
            saved = getattr(node, name)
            for part in saved if isinstance(saved, tuple | list) else (saved,):
                if part is not None and part.unpack_hook is not None:
                    return False
    except RuntimeError:  # the graph was freed
        return False
    return True


_SAVED: dict[type, tuple[str, ...]] = {}


def _saved_names(kind: type) -> tuple[str, ...]:
    known = _SAVED.get(kind)
    if known is None:
        known = _SAVED[kind] = tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))
    return known
