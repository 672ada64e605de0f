"""Softmaxes: along which axis, who sums along another, and how many of their rows one entry has to itself."""

from __future__ import annotations

from torch import Tensor

from unvanish.torch.probe.graph import Vertex
from unvanish.torch.probe.saved import readable, signed

_STRAIGHT = ("View", "UnsafeView", "Expand", "Clone", "ToCopy")  # none of them moves the last axis
_ALONE = 0.99  # of a softmax's row: p (1 - p) is 4 % of its best


def one_hot_share(vertex: Vertex) -> float | None:
    """Share of a softmax's rows that one entry has nearly to itself: they pass next to no gradient."""
    axis = softmax_axis(vertex)
    if axis is None or vertex.op != "softmax" or vertex.shape[axis] < 2 or 0 in vertex.shape or not readable(vertex):
        return None
    highest: Tensor = vertex.node._saved_result.detach().amax(dim=axis)
    return float((highest > _ALONE).count_nonzero()) / highest.numel()


def softmax_axis(vertex: Vertex) -> int | None:
    """The axis along which the outputs of this softmax sum to 1."""
    if vertex.kind != "softmax" or not vertex.shape or not hasattr(vertex.node, "_saved_dim"):
        return None
    return signed(vertex.node._saved_dim) % len(vertex.shape)


def crossed_by(product: Vertex) -> Vertex | None:
    """The softmax whose weights this product, as its left factor, sums along another axis than they sum to 1 along.

    Only where nothing lies between but dropout (a product with a mask) and views that leave the last axis where it is.
    """
    below = product.below[0] if product.below else None
    while below is not None and len(below.below) == 1 and (below.stem in _STRAIGHT or below.stem == "Mul"):
        below = below.below[0]
    if below is None or below.op != "softmax" or below.shape[-1:] != product.below[0].shape[-1:]:
        return None
    axis = softmax_axis(below)
    return below if axis is not None and axis != len(below.shape) - 1 else None
