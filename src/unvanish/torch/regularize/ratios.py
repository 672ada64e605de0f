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


@dataclass(frozen=True, slots=True)
class Rows:
    """Vectors of any size, one row for each sample, and their directions.

    Attributes:
        scaled: (..., features), each row divided by its largest element.
        length: (..., 1), L2 norm of a scaled row.
        size: (..., 1), the largest element of a row; 0 where there is no signal.
        alive: (..., 1), False for rows of zeros and of numbers too small for full precision (subnormal ones).
    """

    scaled: Tensor
    length: Tensor
    size: Tensor
    alive: Tensor

    def near_one(self) -> Rows:
        """The scaled rows as rows of their own: for what is linear in each row alone, and needs its direction only."""
        return Rows(self.scaled, self.length, self.alive.to(self.size.dtype), self.alive)


def rows_of(vectors: Tensor) -> Rows:
    """Directions by dividing by the largest element: squares of float32 numbers below 1e-23 would be 0, above 1e19 inf.

    Args:
        vectors: (..., features); float16 and bfloat16 are widened to float32.
    """
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    largest = vectors.abs().amax(-1, keepdim=True)  # five times as fast on a CPU as the infinity norm
    alive = ~(largest < torch.finfo(vectors.dtype).tiny)  # a NaN is alive: it must not pass for silence
    scaled = vectors * torch.where(alive, largest, torch.inf).reciprocal()
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return Rows(scaled, torch.where(alive, length, 1.0), torch.where(alive, largest, 0.0), alive)


def deviation(pulled: Tensor, cotangents: Rows, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Sum over transitions of the mean over samples of (||u|| / ||v|| - 1)^2, and its derivative by u.

    Args:
        pulled: u, the Jacobian's transpose applied to ``scale`` * v; (transitions, samples, features).
        cotangents: v of the same transitions and samples.
        scale: brings v into range; one number.

    Returns:
        The value and w, the derivative by u: with J linear in W, that by W is the gradient of <scale * v, J w>.
    """
    rows = rows_of(pulled)
    before = torch.where(cotangents.alive, cotangents.size * scale, 1.0) * cotangents.length
    ratio = rows.size * rows.length / before
    counted = cotangents.alive.to(ratio.dtype)
    share = counted / counted.sum(1, keepdim=True).clamp_min(1)
    off = (ratio - 1) * share
    return (off * (ratio - 1)).sum(), rows.scaled * (2 * off / (before * rows.length))


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
