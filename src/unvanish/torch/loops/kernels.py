"""The compiled loops that read tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from unvanish.torch.loops.numba_tools import SUMS, array, compiled

# Entries summed in their own precision, in 32 or more sums side by side, so at most 64 to each: right to 1e-6. What is
# read a second time is still in the first-level cache.
_BLOCK = 1 << 11
_SAFE = (1e-27, 1e37)  # a float32 sum of so many squares in between has lost none that count


@compiled(inline="never", fastmath=SUMS)
def _short_sum(g: Any, zero: Any) -> Any:
    total = zero
    for i in range(len(g)):
        total += g[i] * g[i]
    return total


@compiled(inline="never", fastmath=SUMS)
def wide_sum(g: Any) -> Any:
    """Sum of the squares, in float64."""
    total = 0.0
    for i in range(len(g)):
        wide = np.float64(g[i])
        total += wide * wide
    return total


@compiled()
def _square_sum(g: Any, zero: Any) -> Any:
    total = np.float64(_short_sum(g, zero))
    return total if _SAFE[0] < total < _SAFE[1] else wide_sum(g)


@compiled(inline="never")
def _most(unsigned: Any, signed: Any, smallest: Any, largest: Any) -> Any:
    """Smallest and largest entries by their bits: compiled comparisons of floats take one at a time for NaN's sake.

    Bits are in the order of the numbers among the positive, and as unsigned in the order of size among the negative,
    which come after; NaN is beyond infinity.
    """
    for i in range(len(signed)):
        smallest = max(smallest, unsigned[i])
        largest = max(largest, signed[i])
    return smallest, largest


@compiled(nogil=True)
def look(
    addresses: Any, offsets: Any, low: Any, high: Any, like: Any, squares: Any, smallest: Any, largest: Any
) -> None:
    """Elements ``low`` to ``high`` of all tensors laid end to end: sums of squares, and extremes as bits."""
    zero = like.dtype.type(0)
    for k in range(len(addresses)):
        first, last = max(low - offsets[k], 0), min(high, offsets[k + 1]) - offsets[k]
        for i in range(first, last, _BLOCK):
            j, size = min(i + _BLOCK, last), offsets[k + 1] - offsets[k]
            squares[k] += _square_sum(array(addresses[k], size, like)[i:j], zero)
            bits = array(addresses[k], size, smallest)[i:j], array(addresses[k], size, largest)[i:j]
            smallest[k], largest[k] = _most(*bits, smallest[k], largest[k])


@compiled(nogil=True)
def square_sums(addresses: Any, offsets: Any, low: Any, high: Any, like: Any, squares: Any) -> None:
    """Elements ``low`` to ``high`` of all tensors laid end to end: sums of squares."""
    zero = like.dtype.type(0)
    for k in range(len(addresses)):
        first, last = max(low - offsets[k], 0), min(high, offsets[k + 1]) - offsets[k]
        for i in range(first, last, _BLOCK):
            j, size = min(i + _BLOCK, last), offsets[k + 1] - offsets[k]
            squares[k] += _square_sum(array(addresses[k], size, like)[i:j], zero)
