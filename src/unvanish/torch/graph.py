"""The loss's autograd graph as a list of data-carrying nodes, inputs before outputs.

Requirements: no recursion (10,000 layers), one visit per node, and the weight side kept apart from the data side:
a node belongs to the weight side when everything below it ends in parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unvanish.torch import ops
from unvanish.types import Kind


@dataclass(slots=True)
class Vertex:
    """One node of the graph that carries data. ``data`` = (input position, vertex below) pairs."""

    node: Any
    number: int
    stem: str
    op: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    data: list[tuple[int, Vertex]] = field(default_factory=list)
    parameters: tuple[int, ...] = ()
    readers: int = 0
    hidden: bool = False
    raw_input: bool = False

    @property
    def isometry(self) -> bool:
        """The gradient's norm is the same on both sides of this node."""
        return self.stem in ops.ISOMETRIES


@dataclass(frozen=True, slots=True)
class Graph:
    """``vertices`` in forward order; ``leaves`` every tensor at which gradients accumulate; ``root`` makes the loss."""

    vertices: list[Vertex]
    leaves: dict[int, Tensor]
    root: Vertex | None


def read_graph(loss: Tensor, inputs: set[int]) -> Graph:
    """Walk the graph below ``loss``. ``inputs`` = id of leaf tensors that are data, not parameters."""
    nodes = _reachable(loss.grad_fn)
    vertices: dict[Any, Vertex] = {}
    weight_side: dict[Any, tuple[int, ...]] = {}
    leaves: dict[int, Tensor] = {}
    for node in nodes:
        variable = getattr(node, "variable", None) if node.name().endswith("AccumulateGrad") else None
        if variable is not None:
            leaves[id(variable)] = variable
            if id(variable) in inputs:
                continue
            weight_side[node] = (id(variable),)
            continue
        _place(node, vertices, weight_side)
    ordered = list(vertices.values())
    return Graph(ordered, leaves, vertices.get(loss.grad_fn))


def _reachable(root: Any) -> list[Any]:
    """All nodes below and including ``root``, leaves first, then in the order in which the forward pass made them."""
    seen, stack = {root}, [root]
    while stack:
        for below, _ in stack.pop().next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
    leaves = [node for node in seen if node.name().endswith("AccumulateGrad")]
    return leaves + sorted((node for node in seen if not node.name().endswith("AccumulateGrad")), key=_number)


def _number(node: Any) -> int:
    return int(node._sequence_nr())


def _place(node: Any, vertices: dict[Any, Vertex], weight_side: dict[Any, tuple[int, ...]]) -> None:
    """Put one node on the weight side or make it a vertex; everything below it has been placed already."""
    below = [(i, n) for i, (n, _) in enumerate(node.next_functions) if n is not None]
    data = [(i, vertices[n]) for i, n in below if n in vertices]
    parameters = tuple(p for _, n in below for p in weight_side.get(n, ()))
    stem = ops.stem(node)
    shape, dtype = _output(node)
    if not data and parameters and _only_weights(node, stem, shape, below, weight_side):
        weight_side[node] = parameters
        return
    op, kind = ops.classify(node, stem, len(data))
    hidden = stem in ops.ISOMETRIES or stem in ops.STRUCTURE
    vertex = Vertex(node, _number(node), stem, op, kind, shape, dtype, data, parameters, hidden=hidden)
    vertex.raw_input = not data
    for _, source in data:
        source.readers += 1
    vertices[node] = vertex


def _output(node: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of a node's (first) output."""
    if not node._input_metadata:
        return (), "float32"
    first = node._input_metadata[0]
    return tuple(int(n) for n in first.shape), str(first.dtype).removeprefix("torch.")


def _only_weights(
    node: Any, stem: str, shape: tuple[int, ...], below: list[tuple[int, Any]], weight_side: dict[Any, tuple[int, ...]]
) -> bool:
    """Does this node, which has parameters below it and no data vertex, combine parameters only?

    The network's input needs no gradient, so it leaves only a hole in ``next_functions``.  A product, convolution,
    embedding or normalisation with parameters below always reads data; elementwise ops do when their output has
    more elements than the parameters they read (they were broadcast over a batch).
    """
    _, kind = ops.classify(node, stem, 0)
    if kind in ("linear", "convolution", "recurrent", "embedding", "normalization", "attention", "loss"):
        return False
    if len(below) == len(node.next_functions):
        return True
    sizes = [math.prod(_output(n)[0]) for _, n in below if n in weight_side]
    return math.prod(shape) <= max(sizes, default=0)
