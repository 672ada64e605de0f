"""Sizes of signals and gradients per sample, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unvanish.torch.init.matrices import wide


def spread(x: Tensor) -> tuple[float, float] | None:
    """Standard deviation over the batch, and root-mean-square; None for one sample."""
    if x.ndim < 2 or len(x) < 2:
        return None
    x = wide(x)
    return float(x.var(dim=0, unbiased=False).mean().sqrt()), float(x.square().mean().sqrt())


def log_ratio(numerator: float, denominator: float) -> float:
    """ln of a ratio: -inf where the numerator is exactly zero, NaN where there is nothing to compare."""
    if numerator == 0 or denominator == 0:
        return -math.inf if denominator else math.nan
    return math.log(numerator) - math.log(denominator)


def noise_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, drawn on the CPU."""
    return torch.randn(like.shape, generator=generator).to(like)


def squared_lengths(x: Tensor) -> Tensor:
    """Squared length per sample."""
    return wide(x).reshape(len(x), -1).square().sum(dim=1)


def unit_lengths(x: Tensor) -> Tensor:
    """Each sample's part with length 1."""
    length = squared_lengths(x).sqrt().clamp_min(1e-300)
    return (wide(x) / length.reshape(-1, *(1,) * (x.ndim - 1))).to(x)
