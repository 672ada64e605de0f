"""Activations written by hand: several elementwise ops between two layers, read as the one activation they are.

To autograd ``1 / (1 + exp(-x))`` is a chain of neg, exp, add, reciprocal and mul.  Its derivative needs no formula: for
an elementwise function it is, unit by unit, the gradient that arrives below the chain divided by the one above.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.probe.activations import FLAT_SHARE, Units, alive
from unvanish.torch.probe.graph import Graph, Vertex
from unvanish.torch.probe.norms import Norms, dense

_CURVED = frozenset(
    {"Exp", "Exp2", "Expm1", "Erf", "Erfc", "Log", "Log1p", "Log2", "Pow", "Sqrt", "Rsqrt", "Reciprocal", "Abs"}
    | {"Atan", "Asinh", "Sinh", "Cosh", "Logaddexp"}
)
_STRAIGHT = frozenset({"Add", "Sub", "Rsub", "Mul", "Div", "Neg"})
_KINKED = frozenset({"Where", "Maximum", "Minimum", "Sign", "Sgn", "MaskedFill"})
_LIMITS = frozenset({"Clamp", "ClampMin", "ClampMax"})
_COPIES = frozenset({"Clone", "ToCopy", "Alias"})
_ELEMENTWISE = _CURVED | _STRAIGHT | _KINKED | _LIMITS | _COPIES
_ABOVE = frozenset({"linear", "convolution", "normalization", "recurrent", "attention", "merge"})
_WEIGHTED = frozenset({"linear", "convolution", "recurrent"})
_STEEPEST = (0.25, 1.0)  # best slope of the usual bounded activations: sigmoid's and tanh's
_FAINT = {torch.float16: 1e-3}  # a gradient below this has lost digits, or what it leaves of one below has
_FAINT_WIDE = 1e-30  # the same for float32, whose range bfloat16 and float64 have at least


@dataclass(slots=True, eq=False)
class Handmade:
    """A function of ``source``'s output, element by element, whose value is ``result``'s output."""

    source: Vertex
    result: Vertex
    above: Tensor | None = None  # the gradient that arrived at the result, until the one at the source comes
    units: Units | None = None
    log_slope: float = 0.0  # ln of the largest derivative seen, within what usual activations have
    slot: int = -1

    def hook(self, norms: Norms) -> list[Any]:
        """Watch the gradients above and below; the norm of the one below goes to ``slot``."""
        self.slot = norms.slot()
        return [
            self.result.node.register_prehook(self._arrived_above),
            self.source.node.register_prehook(partial(self._arrived_below, norms)),
        ]

    def _arrived_above(self, gradients: tuple[Tensor | None, ...]) -> None:
        self.above = gradients[0]

    def _arrived_below(self, norms: Norms, gradients: tuple[Tensor | None, ...]) -> None:
        below, above, self.above = gradients[0], self.above, None
        if below is None:
            return
        norms.put(self.slot, below)
        if above is not None and below.shape == above.shape and not below.is_complex():
            self._measure(dense(below).abs(), dense(above).abs())

    def _measure(self, below: Tensor, above: Tensor) -> None:
        known = above > _FAINT.get(above.dtype, _FAINT_WIDE)
        if not bool(known.any()):
            return
        slopes = torch.where(known, below / above, math.nan)
        steepest = min(max(float(slopes.nan_to_num(0.0).max()), _STEEPEST[0]), _STEEPEST[1])
        axis = 1 if _kind_above(self.source) == "convolution" and below.ndim > 2 else below.ndim - 1
        rest = [dim for dim in range(below.ndim) if dim != axis]
        peaks = slopes.nan_to_num(-1.0).amax(dim=rest) if rest else slopes
        peaks = torch.where(peaks < 0, math.nan, peaks)  # no gradient was seen to arrive at this unit
        flat = float((slopes < FLAT_SHARE * steepest).sum()) / float(known.sum())
        self.log_slope = math.log(steepest)
        living = alive(peaks)
        self.units = Units(living.unsqueeze(0), 0, flat, float((~living).sum()) / living.numel())


def find_handmade(graph: Graph) -> list[Handmade]:
    """The activations written by hand between two layers of a graph.

    All that reads the source must lead to the one result, so that the gradients at both belong together; weights must
    come after it, else it may be a loss.
    """
    if _CURVED.isdisjoint([vertex.stem for vertex in graph.vertices]):
        return []
    regions = _regions(graph)
    if not regions:
        return []
    weighted = _before_weights(graph)
    found = (_function(source, members) for source, members in regions)
    return [one for one in found if one is not None and id(one.result) in weighted]


def become_sites(graph: Graph, handmade: list[Handmade]) -> dict[int, Handmade]:
    """Make those that were measured activations of the graph; returns them by the index of their result."""
    measured = {id(one.result): one for one in handmade if one.units is not None}
    if not measured:
        return {}
    found = {}
    for index, vertex in enumerate(graph.vertices):
        one = measured.get(id(vertex))
        if one is not None:
            found[index] = one
            vertex.kind, vertex.below, vertex.positions = "activation", (one.source,), (0,)
    return found


def _regions(graph: Graph) -> list[tuple[Vertex, list[Vertex]]]:
    """Sources, and all that is computed of each of them alone, element by element, some of it curved."""
    origin: dict[int, Vertex] = {}
    members: dict[int, tuple[Vertex, list[Vertex]]] = {}
    for vertex in graph.vertices:
        if vertex.stem not in _ELEMENTWISE or not vertex.below:
            continue
        sources = {id(found): found for found in (origin.get(id(below), below) for below in vertex.below)}
        (source, *others) = sources.values()
        if others or source.shape != vertex.shape or _kind_above(source) not in _ABOVE:
            continue
        origin[id(vertex)] = source
        members.setdefault(id(source), (source, []))[1].append(vertex)
    return [one for one in members.values() if any(vertex.stem in _CURVED for vertex in one[1])]


def _kind_above(vertex: Vertex) -> str:
    while vertex.hidden and len(vertex.below) == 1:
        vertex = vertex.below[0]
    return vertex.kind


def _before_weights(graph: Graph) -> set[int]:
    """Vertices from which the forward pass still comes to a layer with weights."""
    before: set[int] = set()
    for vertex in reversed(graph.vertices):
        if vertex.kind in _WEIGHTED or id(vertex) in before:
            before.update(id(below) for below in vertex.below)
    return before


def _function(source: Vertex, members: list[Vertex]) -> Handmade | None:
    """The curved part of these ops; None where more than one of them, or the source itself, is read from outside.

    A single curved op makes no activation: exp is a softmax's or a deviation's, pow and abs a norm's.
    """
    inside = Counter(id(below) for vertex in members for below in vertex.below)
    results = [vertex for vertex in members if vertex.readers > inside[id(vertex)]]
    if len(results) != 1 or source.readers != inside[id(source)] or sum(map(_bends, members)) < 2:
        return None
    result = results[0]
    while (result.stem in _STRAIGHT or result.stem in _COPIES) and len(result.below) == 1:
        result = result.below[0]  # a scale or a shift behind it belongs to the next layer
        if result is source or result.readers > 1:
            return None
    return Handmade(source, result)


def _bends(vertex: Vertex) -> bool:
    return vertex.stem in _CURVED or vertex.stem in _KINKED or (vertex.stem in ("Mul", "Div") and len(vertex.below) > 1)
