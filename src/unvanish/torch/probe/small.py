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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unvanish.torch import loops
from unvanish.torch.probe.frozen import maker
from unvanish.types import Moments

LARGEST = 1 << 16  # elements: PyTorch gives a thread 32,768, so that with all of its threads it is faster only above
PRICE = 40_000  # tensors: 0.8 s to load Numba and the loops, which save 20 us on each
_FLOATS = np.zeros(0, np.float32)
_new = maker(Moments)
_met = itertools.count()


def fit(tensors: Sequence[Tensor]) -> bool:
    """Can compiled loops read these tensors of one kind, and is that the faster way?"""
    return fits(tensors[0]) and all(map(Tensor.is_contiguous, tensors))


def fits(tensor: Tensor) -> bool:
    """Can compiled loops read this tensor, and is that the faster way by now?"""
    return (
        tensor.dtype is torch.float32
        and 1 < tensor.numel() <= LARGEST
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
    return _moments(tensor, axis, *_kernels().moments(tensor.data_ptr(), *_parts(tensor, axis), _FLOATS))


def many_moments(tensors: Sequence[Tensor], axis: int | None) -> list[Moments]:
    """The same of tensors of one shape."""
    found = np.empty((len(tensors), 3))
    _kernels().many_moments(loops.addresses(tensors), *_parts(tensors[0], axis), _FLOATS, found)
    return [_moments(tensor, axis, *sums) for tensor, sums in zip(tensors, found.tolist(), strict=True)]


def _parts(tensor: Tensor, axis: int | None) -> tuple[int, int, int]:
    """How often the samples are gone through, how many there are, and how many entries each has in one go."""
    if axis is None:
        return 1, 1, tensor.numel()
    outer, samples = math.prod(tensor.shape[:axis]), tensor.shape[axis]
    return outer, samples, tensor.numel() // (outer * samples)


def _moments(tensor: Tensor, axis: int | None, total: float, squares: float, deviations: float) -> Moments:
    count = tensor.numel()
    if not math.isfinite(squares):
        bad = int((~torch.isfinite(tensor.detach())).sum())
        return Moments(count, math.nan, math.nan, None, math.inf, bad)
    std = None if axis is None else math.sqrt(max(0.0, deviations) / count)
    return _new(count, math.sqrt(squares / count), total / count, std)


def norms(tensors: Sequence[Tensor]) -> list[float]:
    """L2 norms of tensors of one size that fit."""
    squares = np.empty(len(tensors))
    _kernels().square_sums(loops.addresses(tensors), tensors[0].numel(), _FLOATS, squares)
    roots: list[float] = np.sqrt(squares).tolist()
    return roots


def slopes(
    op: str, tensors: Sequence[Tensor], axis: int, flat: float, zero: float
) -> tuple[Tensor, list[float], list[float]]:
    """Derivatives of an activation, met many times with one shape.

    ``tensors``: the outputs of a tanh, sigmoid or relu, or for another ``op`` its derivatives; units along ``axis``.

    Returns:
        Of each tensor the largest derivative of each unit, the share of derivatives below ``flat``, and the share of
        units that have none above ``zero``.
    """
    kernels, shape, count = _kernels(), tensors[0].shape, tensors[0].numel()
    outer, units = math.prod(shape[:axis]), shape[axis]
    highest = np.empty((len(tensors), units), np.float32)
    counts = np.zeros((len(tensors), 2))
    code, bounds = kernels.OPS.get(op, kernels.SLOPES), (np.float32(flat), np.float32(zero))
    inner = count // (outer * units)
    kernels.units(loops.addresses(tensors), outer, inner, code, *bounds, highest, counts)
    low, dead = (counts / (count, units)).T.tolist()
    return torch.from_numpy(highest), low, dead
