"""Small tensors measured where they lie, by compiled loops (extra ``fast``): no copies, no calls of PyTorch.

A deep net of narrow layers has thousands of them, and calls of PyTorch cost more than their arithmetic.  Loading the
loops takes the better part of a second, so that they are loaded only when PyTorch's calls have cost as much: at no time
more than twice the least possible is paid, however many tensors are to come (Karlin et al., 1988, "Competitive snoopy
caching", on whether to rent or to buy).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from unvanish.torch import loops
from unvanish.torch.probe.frozen import maker
from unvanish.types import Moments

LARGEST = 1 << 16  # elements: PyTorch gives a thread 32,768, so that with all of its threads it is faster only above
PRICE = 40_000  # tensors: 0.8 s to load Numba and the loops, which save 20 us on each
_FLOATS = np.zeros(0, np.float32)
_WHERE, _IN_MEMORY = attrgetter("layout", "is_cpu"), {(torch.strided, True)}
_new = maker(Moments)
_met = itertools.count()


def fit(tensors: list[Any]) -> TypeGuard[list[Tensor]]:
    """Can compiled loops read these tensors of one shape and dtype, and is that the faster way?"""
    return (
        set(map(type, tensors)) == {Tensor}
        and set(map(_WHERE, tensors)) == _IN_MEMORY
        and fits(tensors[0])
        and all(map(Tensor.is_contiguous, tensors))
    )


def fits(tensor: Tensor) -> bool:
    """Can compiled loops read this tensor, and is that the faster way by now?"""
    return (
        tensor.dtype is torch.float32
        and 0 < tensor.numel() <= LARGEST
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and next(_met) >= PRICE
        and loops.compiled()
    )


@functools.cache
def _kernels() -> Any:
    from unvanish.torch.probe import kernels

    return kernels


def moments(tensor: Tensor, axis: int | None) -> Moments:
    """Moments of a tensor that fits, with samples along ``axis``."""
    parts = _parts(tensor.shape, axis)
    return _moments(tensor, axis, *_kernels().moments(tensor.data_ptr(), *parts, _FLOATS))


@functools.lru_cache
def _count(shape: torch.Size) -> int:
    """One number for all tensors of a shape: thousands of equal ones would take memory."""
    return math.prod(shape)


@functools.lru_cache
def _parts(shape: torch.Size, axis: int | None) -> tuple[int, int, int]:
    """How often what lies along ``axis`` is gone through, its length, and how many entries lie between two of it."""
    if axis is None:
        return 1, 1, math.prod(shape)
    outer, length = math.prod(shape[:axis]), shape[axis]
    return outer, length, math.prod(shape) // (outer * length)


def _moments(tensor: Tensor, axis: int | None, rms: float, mean: float, std: float) -> Moments:
    if math.isfinite(rms):
        return _new(_count(tensor.shape), rms, mean, None if axis is None else std)
    bad = int((~torch.isfinite(tensor.detach())).sum())
    return Moments(tensor.numel(), math.nan, math.nan, None, math.inf, bad)


def norms(tensors: Sequence[Tensor]) -> list[float]:
    """L2 norms of tensors that fit, of any shapes."""
    table = np.array((list(map(Tensor.data_ptr, tensors)), list(map(Tensor.numel, tensors))), np.int64)
    found = np.empty(len(tensors))
    _kernels().norms(table, _FLOATS, found)
    roots: list[float] = found.tolist()
    return roots


def slopes(tensors: Sequence[Tensor], axis: int, flat: float, zero: float) -> tuple[Tensor, list[list[float]]]:
    """Derivatives of an activation, met many times with one shape, with units along ``axis``.

    Returns:
        Of each tensor the largest derivative of each unit; and the share of derivatives below ``flat``, and the share
        of units that have none above ``zero``.
    """
    kernels, shape = _kernels(), tensors[0].shape
    peaks, shares = torch.empty(len(tensors), shape[axis]), np.empty((len(tensors), 2))
    bounds = kernels.SLOPES, flat, zero
    kernels.units(loops.addresses(tensors), _parts(shape, axis), bounds, _FLOATS, peaks.data_ptr(), shares)
    return peaks, shares.tolist()


def outputs(
    op: str, tensors: Sequence[Tensor], samples: int | None, axis: int, flat: float, zero: float
) -> tuple[list[Moments], Tensor, list[list[float]]]:
    """Moments of the outputs of a tanh, sigmoid or relu, with samples along ``samples``; and the derivatives there."""
    kernels, shape = _kernels(), tensors[0].shape
    peaks, found = torch.empty(len(tensors), shape[axis]), np.empty((len(tensors), 5))
    parts, bounds = _parts(shape, axis), (kernels.OPS[op], flat, zero)
    addresses = loops.addresses(tensors)
    kernels.outputs(addresses, _parts(shape, samples), parts, bounds, _FLOATS, peaks.data_ptr(), found)
    rows = found.tolist()
    moments = [_moments(tensor, samples, *row[:3]) for tensor, row in zip(tensors, rows, strict=True)]
    return moments, peaks, [row[3:] for row in rows]
