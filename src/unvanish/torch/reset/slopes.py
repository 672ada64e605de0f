"""The derivative of any activation, a user's own included: autograd is asked; only softmax has a formula."""

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
    """What an activation is like.

    Attributes:
        best_slope: its largest slope; of a softmax over n units that of equal shares, (1/n)(1 - 1/n).
        bounded: is it flat far out on both sides (tanh, sigmoid)?
        competing: does each unit's value depend on all others' (softmax)?
    """

    best_slope: float
    bounded: bool
    competing: bool = False


def slope_at(op: Op, x: Tensor) -> Tensor:
    """phi'(x) of an elementwise op, in the shape of ``x``; of a softmax, its Jacobian's diagonal p (1 - p)."""
    if op.kind == "softmax":
        share = op.apply(x.detach())
        return share * (1 - share)
    with torch.enable_grad():
        point = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(op.apply(point).sum(), point)
    return slope


def family_of(op: Op, like: Tensor) -> Family:
    """Evaluate an activation near zero and far out.

    Args:
        op: an elementwise op, or a softmax.
        like: its input: gives dtype, device, and the channels an activation with weights (PReLU) needs.
    """
    if op.kind == "softmax":
        share = 1 / like.shape[op.arguments["dim"]]
        return Family(share * (1 - share) or 1.0, bounded=True, competing=True)
    line = torch.linspace(-_NEAR, _NEAR, 1601)
    # a handwritten exp(x) overflows far out in float32, and its slope is NaN there
    dtype = like.dtype if op.parameters else torch.float64
    grid = torch.cat([torch.tensor([-_FAR, _FAR]), line]).to(like.device, dtype)
    if op.parameters:
        grid = grid[:, None].expand(-1, like.shape[1])
    slopes = slope_at(op, grid).abs().flatten(1) if op.parameters else slope_at(op, grid).abs()[:, None]
    best = float(slopes.nan_to_num(0.0).max())
    return Family(best or 1.0, bounded=bool((slopes[:2] < _FLAT * best).all()))
