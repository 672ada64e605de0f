"""Dead and saturated units, from the derivative of the activation at the values the network really had.

An autograd node called on ones returns its own derivative, whatever the activation: no table of formulas.
A unit is dead when its derivative is zero on all samples seen; an element is saturated when its derivative has
fallen below 5 % of the activation's largest slope (tanh beyond 2.2, sigmoid beyond 4.4 before the activation).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from unvanish.torch.graph import Vertex

SATURATING = {"tanh": 1.0, "sigmoid": 0.25, "hardtanh": 1.0, "hardsigmoid": 1 / 6, "relu6": 1.0, "softsign": 1.0}
_RISING = {"tanh", "sigmoid", "relu", "relu6", "leaky_relu", "hardtanh", "hardsigmoid", "elu", "selu", "softplus"}
_FLAT_SHARE = 0.05
_ZERO = 1e-6  # a derivative below this passes nothing in float32 training
_QUEUE_LENGTH = 64
_REAL = frozenset({"float32", "float64", "float16", "bfloat16"})
_QUEUE_BYTES = 1 << 18  # what waits is still in the cache when it is measured

_Key = tuple[str, torch.Size, torch.dtype, torch.device, int]


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

    def __init__(self) -> None:
        self._waiting: dict[_Key, list[tuple[int, Tensor]]] = defaultdict(list)
        self._done: dict[int, Units] = {}
        self._ones: dict[tuple[object, ...], Tensor] = {}

    def add(self, key: int, vertex: Vertex, channel: bool) -> None:
        """Queue one activation; ``channel`` = its units lie along axis 1 (it follows a convolution)."""
        slope = self._derivative(vertex)
        if slope is None:
            return
        axis = 1 if channel and slope.ndim > 2 else slope.ndim - 1
        group = self._waiting[vertex.op, slope.shape, slope.dtype, slope.device, axis]
        group.append((key, slope))
        if len(group) >= _QUEUE_LENGTH or len(group) * slope.numel() * slope.element_size() >= _QUEUE_BYTES:
            self._flush(vertex.op, axis, group)

    def finish(self) -> dict[int, Units]:
        """Measure what still waits and return key -> Units."""
        for (op, _, _, _, axis), group in self._waiting.items():
            if group:
                self._flush(op, axis, group)
        self._ones.clear()
        return self._done

    def _derivative(self, vertex: Vertex) -> Tensor | None:
        """phi' at the saved input; None where the values were not kept (checkpointing recomputes them only once)."""
        if not vertex.shape or 0 in vertex.shape or not readable(vertex):
            return None
        meta = vertex.node._input_metadata[0]
        key = (vertex.shape, meta.dtype, meta.device)
        ones = self._ones.get(key)
        if ones is None:  # one element seen as many: it takes no memory
            ones = self._ones[key] = torch.ones((), dtype=meta.dtype, device=meta.device).expand(vertex.shape)
        slope = vertex.node(ones)
        slope = slope[0] if isinstance(slope, tuple) else slope
        if not isinstance(slope, Tensor) or slope.shape != ones.shape:
            return None
        return slope.clone() if slope.data_ptr() == ones.data_ptr() else slope.detach()

    def _flush(self, op: str, axis: int, group: list[tuple[int, Tensor]]) -> None:
        slopes = group[0][1].unsqueeze(0) if len(group) == 1 else torch.stack([slope for _, slope in group])
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
        for (key, _), mask, share, lived in zip(group, alive.unbind(0), shares, living, strict=True):
            self._done[key] = Units(mask, share, 1 - lived / count)
        group.clear()


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
