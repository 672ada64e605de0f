"""The same numbers on all ranks: sums and maxima over what each of them saw, then rank 0's bits for everyone."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from unvanish.torch.reset.statistics import UnitStatistics


def several_ranks() -> bool:
    """Is this one of several processes that train together?"""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(tensors: list[Tensor]) -> list[Tensor]:
    """Float64 tensors, each summed over the ranks."""
    return _reduced(tensors, "sum")


def largest(tensors: list[Tensor]) -> list[Tensor]:
    """Float64 tensors, the largest over the ranks of each entry."""
    return _reduced(tensors, "max")


def merged(statistics: dict[str, UnitStatistics]) -> dict[str, UnitStatistics]:
    """Statistics by layer over the samples of all ranks."""
    every = list(statistics.values())
    sums = summed([part for one in every for part in (one.samples, one.flat, one.magnitude)])
    tops = largest([one.steepest for one in every])
    return {
        layer: replace(one, samples=sums[3 * k], flat=sums[3 * k + 1], magnitude=sums[3 * k + 2], steepest=tops[k])
        for k, (layer, one) in enumerate(statistics.items())
    }


def _reduced(tensors: list[Tensor], how: str) -> list[Tensor]:
    if not several_ranks() or not tensors:
        return tensors
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(packed, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
    # the order of a sum is the backend's own: the decision must not hang on a last bit
    dist.broadcast(packed, src=0)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
