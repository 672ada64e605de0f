"""The step compiled by Numba: one pass over all tensors of a group in one call, without the interpreter's lock."""

from __future__ import annotations

from typing import Any

import numpy as np

from unvanish.torch.loops.numba_tools import SUMS, array, compiled

BLOCK = 1 << 12  # elements updated at once: all that is read and written of them fits the second-level cache
P, G, V, M, B = range(5)  # rows of the table of addresses
RHO, KEEP, EPS_INSIDE, EPS_OUTSIDE, LR_IN, LR_OUT, DECAY, SHRINK = range(8)  # places in the row of numbers
MOMENTUM, OF_STEP, OF_BUFFER, SCALE, LIMIT, FLOOR, LARGEST, ZERO, ONE = range(8, 17)


@compiled()
def _gradient(g: Any, p: Any, scale: Any, decay: Any, limit: Any) -> Any:
    return min(max(g * scale + decay * p, -limit), limit)


@compiled(inline="never", fastmath=SUMS)
def _advance(p: Any, g: Any, v: Any, b: Any, variance: Any, n: Any, correction: Any) -> Any:
    """The formula of ``formula.py``, for gradients of any kind; returns how many are not finite.

    What a setting turns off is multiplied by 0 or 1, which is exact and costs nothing beside the memory. Numbers are
    read before the loop, and at most four arrays in it: with more, LLVM does not check that none of them overlap,
    and makes no vector instructions.
    """
    rho, keep, inside, outside, lr_in, lr_out = n[RHO], n[KEEP], n[EPS_INSIDE], n[EPS_OUTSIDE], n[LR_IN], n[LR_OUT]
    scale, decay, shrink, limit, largest = n[SCALE], n[DECAY], n[SHRINK], n[LIMIT], n[LARGEST]
    momentum, of_step, of_buffer, zero, one = n[MOMENTUM], n[OF_STEP], n[OF_BUFFER], n[ZERO], n[ONE]
    bad = zero
    for i in range(len(p)):
        ok = abs(g[i]) <= largest
        bad += zero if ok else one
        x = _gradient(g[i], p[i], scale, decay, limit)
        if variance is None:
            d = rho * v[i] + keep * x * x
            v[i] = d if ok else v[i]
            d *= correction
        else:
            d = variance[i]
        u = lr_in * (x / (np.sqrt(d + inside) + outside))
        if b is not None:
            h = momentum * b[i] + u
            b[i] = h if ok else b[i]
            u = of_step * u + of_buffer * h
        moved = shrink * p[i] - lr_out * u
        p[i] = moved if ok else p[i]
    return np.int64(bad)


@compiled(inline="never", fastmath={"contract"})
def _average(p: Any, g: Any, average: Any, result: Any, square: Any, n: Any, correction: Any) -> None:
    """Running average of the gradient or of its square, kept where the gradient is not finite; corrected in result."""
    rho, keep, scale, decay, limit, largest = n[RHO], n[KEEP], n[SCALE], n[DECAY], n[LIMIT], n[LARGEST]
    for i in range(len(p)):
        x = _gradient(g[i], p[i], scale, decay, limit)
        new = rho * average[i] + keep * (x * x if square else x)
        average[i] = new if abs(g[i]) <= largest else average[i]
        result[i] = new * correction


@compiled(inline="never", fastmath={"contract"})
def _subtract_square(d: Any, mean: Any, n: Any) -> None:
    floor = n[FLOOR]
    for i in range(len(mean)):
        d[i] = max(d[i] - mean[i] * mean[i], floor * d[i])


@compiled()
def _cut(array: Any, start: Any, stop: Any) -> Any:
    return None if array is None else array[start:stop]


@compiled()
def _room(like: Any) -> Any:
    return None if like is None else np.empty(BLOCK, like.dtype)


@compiled(nogil=True)
def step(  # noqa: PLR0913, PLR0917 - Numba takes no objects
    table: Any, offsets: Any, low: Any, high: Any, n: Any, corrections: Any, centered: Any, momentum: Any, bad: Any
) -> None:
    """Update elements ``low`` to ``high`` of all tensors laid end to end; ``bad``: non-finite entries of each."""
    variance = _room(centered)
    mean = _room(centered)
    for k in range(len(corrections)):
        first, last = max(low - offsets[k], 0), min(high, offsets[k + 1]) - offsets[k]
        if first >= last:
            continue
        size = offsets[k + 1] - offsets[k]
        p, g, v = array(table[P, k], size, n), array(table[G, k], size, n), array(table[V, k], size, n)
        m = None if centered is None else array(table[M, k], size, n)
        b = None if momentum is None else array(table[B, k], size, n)
        for i in range(first, last, BLOCK):
            j = min(i + BLOCK, last)
            d = None
            if m is not None:
                _average(p[i:j], g[i:j], v[i:j], variance, True, n, corrections[k])
                _average(p[i:j], g[i:j], m[i:j], mean, False, n, corrections[k])
                _subtract_square(variance, mean[: j - i], n)
                d = variance
            bad[k] += _advance(p[i:j], g[i:j], v[i:j], _cut(b, i, j), d, n, corrections[k])
