"""The loss's autograd graph as a list of data-carrying nodes, inputs before outputs.

Requirements: no recursion (10,000 layers), one visit per node (asking a node anything costs microseconds), and the
weight side kept apart from the data side: a node belongs to the weight side when everything below it ends in
parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unvanish.torch.probe import ops
from unvanish.vocabulary import Kind

_Edges = tuple[tuple[Any, int], ...]
Form = tuple[tuple[int, ...], str, bool]  # shape and dtype of the first output, and whether there are more
_ALONE = tuple((position,) for position in range(4))  # most read one thing: one object tells where, for all of them
_MISSING = object()
_LEAF = "AccumulateGrad"
# ops that read data even where all that autograd shows of their inputs is a parameter: the ids need no gradient
_LOOKUPS = frozenset({"Index", "IndexSelect", "Gather", "Take", *ops.EMBEDDINGS})
_READS_DATA = frozenset({"linear", "convolution", "recurrent", "embedding", "normalization", "attention", "loss"})
_BYTES = {"float64": 8, "complex64": 8, "complex128": 16, "float16": 2, "bfloat16": 2}
_HIDDEN = frozenset(ops.ISOMETRIES | ops.STRUCTURE)


@dataclass(slots=True)
class Vertex:
    """One node of the graph that carries data, the ``index``-th of them.

    ``below`` = the vertices it reads, at ``positions`` among its inputs; ``constant``: it is made of parameters alone,
    yet by an op that normally reads data (a factorised weight, a learned query).
    """

    node: Any
    index: int
    number: int
    stem: str
    op: str
    kind: Kind
    form: Form
    below: tuple[Vertex, ...] = ()
    positions: tuple[int, ...] = ()
    parameters: tuple[Tensor, ...] = ()
    readers: int = 0
    hidden: bool = False
    constant: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its output."""
        return self.form[0]

    @property
    def dtype(self) -> str:
        """Its dtype, without ``torch.``."""
        return self.form[1]

    @property
    def custom(self) -> bool:
        """It is a ``torch.autograd.Function`` of the user's."""
        return type(self.node) not in ops.STEMS

    @property
    def several(self) -> bool:
        """It has more than one output; shape and dtype are those of the first."""
        return self.form[2]

    @property
    def raw_input(self) -> bool:
        """It reads the batch itself."""
        return not self.below

    @property
    def size(self) -> int:
        """Bytes of its output, and of the gradient that arrives there."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, 4)

    @property
    def isometry(self) -> bool:
        """The gradient's norm is the same on both sides of this node."""
        return self.stem in ops.ISOMETRIES


@dataclass(frozen=True, slots=True)
class Graph:
    """``vertices`` in forward order; ``ends`` every tensor at which gradients accumulate; ``root`` makes the loss."""

    vertices: list[Vertex]
    ends: list[Tensor]
    root: Vertex | None

    @property
    def leaves(self) -> dict[int, Tensor]:
        """The ends by their id."""
        return {id(end): end for end in self.ends}


def read_graph(loss: Tensor, inputs: set[int]) -> Graph:
    """Walk the graph below ``loss``. ``inputs`` = id of leaf tensors that are data, not parameters."""
    if loss.grad_fn is None:  # it was made of plain numbers, and may have been told to require a gradient since
        return Graph([], [], None)
    reader = _Reader(inputs)
    foreign = not reader.read(*_reachable(loss.grad_fn))
    if foreign:  # nodes numbered by another thread, such as the backward thread of a GPU: numbers give no order
        reader = _Reader(inputs)
        leaves, nodes = _reachable(loss.grad_fn)
        reader.read(leaves, _topological(loss.grad_fn, nodes, reader.numbers))
    root = reader.placed.get(loss.grad_fn)
    return Graph(reader.vertices, reader.ends, root if isinstance(root, Vertex) else None)


def _reachable(root: Any) -> tuple[list[Any], list[Any]]:
    """All nodes below and including ``root``: the leaves, and the others, those made last first.

    Nothing but the nodes: Python keeps the memory of thousands of small tuples for others of their length.
    """
    leaves: list[Any] = []
    nodes: list[Any] = []
    seen, stack, stems = {root}, [root], ops.STEMS
    while stack:
        node = stack.pop()
        stem = stems.get(type(node)) or ops.stem(node)
        if stem == _LEAF:
            leaves.append(node)
            continue
        nodes.append(node)
        for source, _ in node.next_functions:
            if source is not None and source not in seen:
                seen.add(source)
                stack.append(source)
    nodes.sort(key=_number, reverse=True)
    return leaves, nodes


def _number(node: Any) -> int:
    number: int = node._sequence_nr()
    return number


def _topological(root: Any, nodes: list[Any], numbers: dict[Any, int]) -> list[Any]:
    """The same nodes, each before all it reads; a number that contradicts this order becomes negative: no module's."""
    known = set(nodes)
    ordered: list[Any] = []
    last: dict[Any, int] = {}
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if node not in known or node in last:
            continue
        number = _number(node)
        below = [source for source, _ in node.next_functions if source in known]
        if not ready:
            stack.append((node, True))
            stack.extend((source, False) for source in below if source not in last)
            continue
        newest = max((last[source] for source in below), default=-1)
        last[node] = max(number, newest)
        if number <= newest:
            numbers[node] = -2 - len(ordered)
        ordered.append(node)
    ordered.reverse()
    return ordered


class _Reader:
    """Sorts nodes into data side and weight side, one after the other, inputs first."""

    def __init__(self, inputs: set[int]) -> None:
        self.inputs = inputs
        self.vertices: list[Vertex] = []
        self.ends: list[Tensor] = []
        self.placed: dict[Any, Vertex | tuple[Tensor, ...] | None] = {}  # vertex, the parameters below, or input data
        self.numbers: dict[Any, int] = {}  # of nodes that are not known by their own
        self._forms: dict[Form, Form] = {}

    def read(self, leaves: list[Any], nodes: list[Any]) -> bool:
        """Place all nodes, the last first, and let go of them; False as soon as one reads what is not placed yet."""
        for node in leaves:
            end = node.variable
            self.ends.append(end)
            self.placed[node] = None if id(end) in self.inputs else (end,)
        while nodes:
            if not self._place(nodes.pop()):
                return False
        return True

    def _place(self, node: Any) -> bool:
        stem, edges = ops.STEMS.get(type(node)) or ops.stem(node), node.next_functions
        data: tuple[Vertex, ...] = ()
        positions: tuple[int, ...] = ()
        parameters: tuple[Tensor, ...] = ()
        holes = False  # inputs that need no gradient, or that are the batch itself
        placed = self.placed
        for position, (source, _) in enumerate(edges):
            below = None if source is None else placed.get(source, _MISSING)
            if below is None:
                holes = True
            elif type(below) is Vertex:
                data += (below,)
                positions += _ALONE[position] if position < len(_ALONE) else (position,)
            elif type(below) is tuple:
                parameters += below
            else:
                return False
        if data or not parameters or not self._only_weights(stem, node, edges, holes):
            placed[node] = self._vertex(stem, node, data, positions, parameters, holes)
        else:
            placed[node] = parameters
        return True

    def _vertex(
        self,
        stem: str,
        node: Any,
        data: tuple[Vertex, ...],
        positions: tuple[int, ...],
        parameters: tuple[Tensor, ...],
        holes: bool,
    ) -> Vertex:
        form = _output(node)
        op, kind = ops.FIXED.get(stem) or ops.classify(node, stem, self._carriers(data))
        form = self._forms.setdefault(form, form)
        index, number = len(self.vertices), self.numbers.get(node) or node._sequence_nr()
        vertex = Vertex(node, index, number, stem, op, kind, form, data, positions, parameters, 0, stem in _HIDDEN)
        vertex.constant = not holes and stem not in _LOOKUPS and bool(data or parameters)  # else it reads the batch
        for source in data:
            source.readers += 1
            vertex.constant = vertex.constant and source.constant
        self.vertices.append(vertex)
        return vertex

    def _carriers(self, data: tuple[Vertex, ...]) -> int:
        """Inputs that carry the batch; parameters combined by a product count only where nothing else is read."""
        return (len(data) > 1 and sum(not source.constant for source in data)) or len(data)

    def _only_weights(self, stem: str, node: Any, edges: _Edges, holes: bool) -> bool:
        """Does this node, which has parameters below it and no data vertex, combine parameters only?

        The network's input needs no gradient, so it leaves only a hole in ``next_functions``.  A product,
        convolution, embedding or normalisation with parameters below reads data; elementwise ops do when their
        output has more elements than the parameters they read (they were broadcast over a batch).
        """
        if stem in _LOOKUPS or (stem not in _HIDDEN and ops.classify(node, stem, 0)[1] in _READS_DATA):
            return False
        if not holes:
            return True
        if any(source is not None and self.placed[source] is None for source, _ in edges):
            return False
        sizes = [math.prod(_output(source)[0]) for source, _ in edges if source is not None]
        return math.prod(_output(node)[0]) <= max(sizes, default=0)


_DTYPES: dict[Any, str] = {}


def _output(node: Any) -> Form:
    """What a node puts out."""
    metadata = node._input_metadata
    if not metadata:
        return (), "float32", False
    first = metadata[0]
    dtype = _DTYPES.get(first.dtype)
    if dtype is None:
        dtype = _DTYPES[first.dtype] = str(first.dtype).removeprefix("torch.")
    return tuple(first.shape), dtype, len(metadata) > 1
