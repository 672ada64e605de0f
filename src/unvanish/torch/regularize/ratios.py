"""Omega's ratio of norms, its derivative, and a scalar that carries gradients which are known already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

GradientRule = Callable[[Tensor], Tensor]  # the penalty's own gradient -> that of one weight


@dataclass(frozen=True, slots=True)
class Part:
    """A share of the penalty: its value, its gradient by weight, and at how many samples it saw a signal."""

    value: Tensor
    gradients: tuple[tuple[Tensor, GradientRule], ...]
    seen: Tensor


_FAINTEST = 1e-30  # a ratio below this counts as this where a direction is wanted: float32 holds its inverse


def lengths(rows: Tensor) -> Tensor:
    """L2 norms along the last axis, kept as an axis, in float64: squares of float32 numbers below 1e-23 would be 0.

    Where there is no float64 the largest element of each row is divided out first.
    """
    if rows.device.type != "mps":
        exact: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float64)
        return exact
    rows = rows.float()
    largest = rows.abs().amax(-1, keepdim=True)
    scaled: Tensor = torch.linalg.vector_norm(rows / largest.clamp_min(1e-38), dim=-1, keepdim=True)
    return scaled * largest


def deviation(after: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    r"""Sum over transitions of the mean over samples of (||u|| / ||v|| - 1)^2, and its derivative.

    Samples with ||v|| = 0 count for nothing.  A NaN counts: it must not pass for silence.

    Args:
        after: ||u||, the Jacobian's transpose applied to v, (transitions, samples, 1).
        before: ||v||, same shape.

    Returns:
        The value, and c for each row: the derivative by u is c u.
    """
    alive = before != 0
    before = torch.where(alive, before, 1.0)
    ratio = after / before
    share = alive.to(ratio.dtype) / alive.sum(1, keepdim=True).clamp_min(1)
    off = (ratio - 1) * share
    return (off * (ratio - 1)).sum(), 2 * off / (before * after.clamp_min(_FAINTEST))


class _Known(torch.autograd.Function):
    """The value in the forward pass; in the backward pass, gradients that need no graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rules: Sequence[GradientRule], *weights: Tensor) -> Tensor:
        ctx.rules, ctx.dtypes = rules, [weight.dtype for weight in weights]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(rule(incoming).to(dtype) for rule, dtype in zip(ctx.rules, ctx.dtypes, strict=True)))


def with_gradients(value: Tensor, gradients: Sequence[tuple[Tensor, GradientRule]]) -> Tensor:
    """A scalar whose backward pass hands each weight its gradient."""
    trained = [(weight, rule) for weight, rule in gradients if weight.requires_grad]
    carry: Callable[..., Tensor] = _Known.apply
    return carry(value, [rule for _, rule in trained], *(weight for weight, _ in trained))


def times(gradient: Tensor) -> GradientRule:
    """The rule of a gradient that is known already."""
    return lambda incoming: gradient * incoming.to(gradient.dtype)


def outer(cotangents: Tensor, inputs: Tensor, scale: Tensor | float = 1.0) -> GradientRule:
    """The rule of a linear map's weight, scale * v^T x: one matrix product, made when it is asked for."""
    left, right = cotangents.reshape(-1, cotangents.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
    return lambda incoming: (left * (incoming * scale)).to(right.dtype).t() @ right
