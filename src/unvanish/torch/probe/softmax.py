"""Softmaxes: along which axis, and how many of their rows one entry has to itself."""

from __future__ import annotations

from torch import Tensor

from unvanish.torch.probe.graph import Vertex
from unvanish.torch.probe.saved import readable

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
    axis = int(vertex.node._saved_dim)
    axis = axis - (1 << 64) if axis >= 1 << 63 else axis  # autograd shows -1 as an unsigned number
    return axis % len(vertex.shape)
