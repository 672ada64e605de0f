"""KLDivLoss leaves no node of its own: it is known by what it multiplies."""

from __future__ import annotations

import torch
from torch import Tensor

from unvanish.torch.probe.graph import Vertex
from unvanish.torch.probe.saved import readable

_REDUCTIONS = ("mean", "sum", "div", "mul")


def divergence(root: Vertex | None) -> Vertex | None:
    """What KLDivLoss takes for log-probabilities q in its sum of p ln p - p q, p constant; None: no such loss.

    The graph shows constant - p q before the reductions, with p a distribution over the last axis or the classes.
    """
    while root is not None and root.op in _REDUCTIONS and len(root.below) == 1 and not _weighs(root):
        root = root.below[0]
    if root is None or root.stem != "Sub" or root.positions != (1,):
        return None
    product = root.below[0]
    return product.below[0] if _weighs(product) else None


def _weighs(vertex: Vertex) -> bool:
    """A product with a constant distribution of its own shape."""
    if vertex.stem != "Mul" or len(vertex.below) != 1 or not readable(vertex):
        return False
    weights = vertex.node._saved_self if vertex.positions == (1,) else vertex.node._saved_other
    return isinstance(weights, Tensor) and tuple(weights.shape) == vertex.shape and _distribution(weights.detach())


def _distribution(weights: Tensor) -> bool:
    """Not negative, and of sum 1 over the last axis or over the classes."""
    if weights.ndim < 2 or not weights.is_floating_point() or not bool((weights >= 0).all()):
        return False
    sums = (weights.sum(axis) for axis in {1, weights.ndim - 1})
    return any(torch.allclose(total, torch.ones_like(total), atol=1e-3) for total in sums)
