"""Many tensors in one call: for small layers a loop in Python costs more than its work."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lengths_of(tensors: list[Tensor] | tuple[Tensor, ...]) -> list[float]:
    """Root of the sum of squares of each."""
    return [float(length) for length in torch._foreach_norm(tensors)] if tensors else []


def products(some: list[Tensor], others: list[Tensor]) -> tuple[float, list[float]]:
    """Sum of all the products, entry by entry, and the length of each tensor of them."""
    if not some:
        return 0.0, []
    parts = torch._foreach_mul(some, others)
    total = sum(float(part.sum()) for part in parts)
    if not math.isfinite(total):
        for part, other in zip(parts, others, strict=True):
            part.masked_fill_(other == 0, 0.0)  # 0 * inf: not moved
        total = sum(float(part.sum()) for part in parts)
    return total, lengths_of(parts)
