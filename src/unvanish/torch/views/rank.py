"""Rank collapse: does the way from the first to the last hidden layer still tell directions apart?

A gradient may keep its norm and lose its directions: the hidden-to-hidden Jacobian J tends to rank one in deep
plain nets.  Its stable rank ||J||_F^2 / ||J||_2^2 is estimated per sample from a sketch of eight random
vector-Jacobian products, without forming J.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from unvanish.torch.probe.graph import Vertex, read_graph
from unvanish.torch.rehearsal.objective import Objective

PROJECTIONS = 8


def stable_rank(model: nn.Module, objective: Objective, batch: Any) -> float | None:
    r"""Mean over samples of the stable rank of a sketch of the hidden-to-hidden Jacobian.

    .. math:: Y = V J,\ V \in R^{8 \times d},\ V_{ij} \sim N(0, 1):\quad \|Y\|_F^2 / \|Y\|_2^2 \in [1, 8]

    1 means that all directions have collapsed into one; a full-rank, isotropic J of width 64 gives about 4.7.

    Args:
        model: the network, a copy.
        objective: how a batch becomes a loss.
        batch: one batch; the axis of samples comes first.

    Returns:
        The estimate, dimensionless; None where fewer than two activations lie on one path or nothing arrives.

    Source: Martin and Mahoney 2021, JMLR 22(165), section 3 (stable rank); Halko et al. 2011, arXiv:0909.4061 (sketch).
    """
    loss = objective.run(model, batch)
    if not loss.requires_grad:
        return None
    activations = [v for v in read_graph(loss, set()).vertices if v.kind == "activation" and v.shape]
    if len(activations) < 2:
        return None
    try:
        sketch = _sketch(activations[0], activations[-1], loss.device)
    except RuntimeError:  # re-entrant checkpointing forbids torch.autograd.grad: not observed
        return None
    return None if sketch is None else _mean_stable_rank(sketch)


def _sketch(first: Vertex, last: Vertex, device: torch.device) -> Tensor | None:
    """Random rows times the Jacobian, shape (samples, PROJECTIONS, features of the first layer), float64."""
    generator = torch.Generator().manual_seed(0)
    dtype = last.node._input_metadata[0].dtype
    rows = []
    for _ in range(PROJECTIONS):
        direction = torch.randn(last.shape, generator=generator).to(device, dtype)
        row: Tensor | None = torch.autograd.grad(
            GradientEdge(last.node, 0), GradientEdge(first.node, 0), direction, retain_graph=True, allow_unused=True
        )[0]
        if row is None:
            return None
        rows.append(row.detach().to(torch.float64).reshape(len(row), -1))
    return torch.stack(rows, dim=1)


def _mean_stable_rank(sketch: Tensor) -> float | None:
    """Stable rank per sample, over the samples at which anything arrives."""
    values = torch.linalg.svdvals(sketch)
    alive = values[values[:, 0] > 0]
    if not len(alive) or not bool(torch.isfinite(alive).all()):
        return None
    return float(((alive / alive[:, :1]) ** 2).sum(dim=1).mean())
