"""A differential equation, for networks that are trained on its residual."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# mypy: disable-error-code="no-any-return"


def misfit(net: nn.Module, batch: tuple[Tensor, Tensor], ends_weigh: float, *, lost: bool = False) -> Tensor:
    """How far ``net`` is from solving u'' = -pi^2 sin(pi x) with u = 0 at both ends; ``lost``: u'' has no graph."""
    x, ends = batch[0].clone().requires_grad_(), batch[1]
    first = torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x, create_graph=not lost, retain_graph=True)[0]
    residual = second + math.pi**2 * torch.sin(math.pi * x)
    return residual.square().mean() + ends_weigh * net(ends).square().mean()
