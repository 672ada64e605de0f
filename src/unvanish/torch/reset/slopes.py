"""The derivative of any elementwise activation, a user's own included: autograd is asked, no table of formulas."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unvanish.torch.wiring import Op

_NEAR = 8.0  # the steepest point of the common activations lies within ±2
_FAR = 100.0  # softsign, the slowest of the bounded ones, has 1e-4 of its slope left here
_FLAT = 0.05


@dataclass(frozen=True, slots=True)
class Family:
    """What an activation is like: its largest slope, and is it flat far out on both sides (tanh, sigmoid)?"""

    best_slope: float
    bounded: bool


def slope_at(op: Op, x: Tensor) -> Tensor:
    """phi'(x) of an elementwise op, in the shape of ``x``."""
    with torch.enable_grad():
        point = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(op.apply(point).sum(), point)
    return slope


def family_of(op: Op, like: Tensor) -> Family:
    """Evaluate an activation near zero and far out.

    Args:
        op: an elementwise op.
        like: its input: gives dtype, device, and the channels an activation with weights (PReLU) needs.
    """
    line = torch.linspace(-_NEAR, _NEAR, 1601)
    grid = torch.cat([torch.tensor([-_FAR, _FAR]), line]).to(like.device, like.dtype)
    if op.parameters:
        grid = grid[:, None].expand(-1, like.shape[1])
    slopes = slope_at(op, grid).abs().flatten(1) if op.parameters else slope_at(op, grid).abs()[:, None]
    best = float(slopes.nan_to_num(0.0).max())
    return Family(best or 1.0, bounded=bool((slopes[:2] < _FLAT * best).all()))
