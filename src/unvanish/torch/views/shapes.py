"""Shapes that fit and yet are wrong: predictions that broadcast against targets, axes mixed up by a view."""

from __future__ import annotations

from torch import Tensor

from unvanish.torch.probe.graph import Graph, Vertex
from unvanish.torch.probe.saved import readable

_VIEWS = ("View", "UnsafeView", "ReshapeAlias")
_Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def reordered(loss: Vertex) -> _Shapes | None:
    """(before, after) of a view between network and loss that only exchanges sizes, as a permute would.

    A view does not move numbers: (batch, time, classes) seen as (batch, classes, time) mixes times with classes.
    """
    vertex = loss
    while vertex.below and (vertex is loss or vertex.hidden or vertex.kind == "softmax"):
        below = vertex.below[0]
        before, after = (tuple(size for size in one.shape if size != 1) for one in (below, vertex))
        if vertex.stem in _VIEWS and before != after and sorted(before) == sorted(after):
            return below.shape, vertex.shape
        vertex = below
    return None


def broadcast(graph: Graph, target: tuple[int, ...] | None) -> _Shapes | None:
    """(n, 1) predictions against (n,) targets, or the reverse: each prediction meets every target, (n, n)."""
    for vertex in graph.vertices:
        widened = len(vertex.shape) == 2 and vertex.shape[0] == vertex.shape[1] > 1
        by_loss = vertex.stem == "Expand" or (vertex.op in ("sub", "add", "mul") and vertex.kind == "other")
        if not (widened and by_loss and len(vertex.below) == 1):
            continue
        source, count = vertex.below[0], vertex.shape[0]
        column, row = (count, 1), (count,)
        fits = source.shape == column or (source.shape == row and column in (target, *_factors(vertex)))
        if fits and _reaches_loss_only(vertex, graph):
            return source.shape, row if source.shape == column else column
    return None


def _factors(vertex: Vertex) -> list[tuple[int, ...]]:
    """Shapes of what a product keeps: rewards, weights of the samples."""
    kept = [getattr(vertex.node, name, None) for name in ("_saved_self", "_saved_other")] if readable(vertex) else []
    return [tuple(one.shape) for one in kept if isinstance(one, Tensor)]


def _reaches_loss_only(vertex: Vertex, graph: Graph) -> bool:
    """No weight is applied after this vertex: it stands in the loss."""
    after = {id(vertex)}
    for other in graph.vertices:
        if any(id(below) in after for below in other.below):
            after.add(id(other))
            if other.parameters or other.kind in ("linear", "convolution", "attention"):
                return False
    return True
