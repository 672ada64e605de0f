"""Loops over many tensors in one call, compiled by Numba where it is installed (extra ``fast``).

One pass over memory where PyTorch has no operation for it, and no cost per tensor but that of asking for its address.
Numba's own threads are not used: it would bring a second OpenMP library into PyTorch's process, which can make
PyTorch's small operations a hundred times slower.  Each Python thread gets a range of its own instead.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORTH_A_THREAD = 1 << 20  # elements: below about 20 MiB of traffic, waking a thread costs more than it saves
NUMPY: dict[torch.dtype, type[np.floating[Any]]] = {torch.float32: np.float32, torch.float64: np.float64}
_INTEGERS: dict[torch.dtype, tuple[type[Any], type[Any]]] = {
    torch.float32: (np.int32, np.uint32),
    torch.float64: (np.int64, np.uint64),
}


class Looks(NamedTuple):
    """Of each tensor: the sum of its squares, its smallest entry (or -0), its largest (or 0).

    A NaN or an infinity always is the smallest or the largest entry.  Squares beyond float64 end in 0 or inf.
    """

    squares: list[float]
    smallest: list[float]
    largest: list[float]


@functools.cache
def compiled() -> bool:
    """Whether there are compiled loops: not where Numba is missing or told not to compile."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        import numba
    except ImportError as error:  # it refuses a NumPy that is newer than it knows
        warnings.warn(
            f"Numba is installed but cannot be imported ({error}); PyTorch's own operations are used instead, which "
            "are slower. To mend it: install versions of numba and numpy that fit together, or remove numba.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return not numba.config.DISABLE_JIT


def look(tensors: Sequence[Tensor]) -> Looks:
    """Read each once; they have one dtype of ``NUMPY``, are on the CPU and in one piece of memory each."""
    from unvanish.torch.loops import kernels

    dtype = tensors[0].dtype
    table, ends = addresses(tensors), offsets(tensors)
    spans = ranges(int(ends[-1]))
    signed, unsigned = _INTEGERS[dtype]
    squares = np.zeros((len(spans), len(tensors)))
    largest = np.zeros_like(squares, signed)
    smallest = np.full_like(squares, 1 << (8 * dtype.itemsize - 1), unsigned)  # the bits of -0.0
    like = np.zeros(0, NUMPY[dtype])
    each(lambda k: kernels.look(table, ends, *spans[k], like, squares[k], smallest[k], largest[k]), len(spans))
    smallest, largest = smallest.max(axis=0), largest.max(axis=0)
    lists = (squares.sum(axis=0), smallest.view(like.dtype), largest.view(like.dtype))
    return Looks(*(array.tolist() for array in lists))


def square_sums(table: NDArray[np.int64], ends: NDArray[np.int64], dtype: torch.dtype) -> list[float]:
    """Sum of the squares of each tensor at these addresses and offsets, in float64."""
    from unvanish.torch.loops import kernels

    spans = ranges(int(ends[-1]))
    squares = np.zeros((len(spans), len(table)))
    like = np.zeros(0, NUMPY[dtype])
    each(lambda k: kernels.square_sums(table, ends, *spans[k], like, squares[k]), len(spans))
    result: list[float] = squares.sum(axis=0).tolist()
    return result


def addresses(tensors: Sequence[Tensor]) -> NDArray[np.int64]:
    """Of the first entry of each."""
    return np.array(list(map(Tensor.data_ptr, tensors)), dtype=np.int64)


def offsets(tensors: Sequence[Tensor]) -> NDArray[np.int64]:
    """Where each starts when all are laid end to end, and where the last ends."""
    ends = np.zeros(len(tensors) + 1, dtype=np.int64)
    np.cumsum(list(map(Tensor.numel, tensors)), out=ends[1:])
    return ends


def ranges(total: int) -> list[tuple[int, int]]:
    """Parts of ``total`` elements, one for each thread that is worth waking."""
    count = max(1, min(torch.get_num_threads(), total // WORTH_A_THREAD))
    return [(total * k // count, total * (k + 1) // count) for k in range(count)]


def each(run: Callable[[int], None], count: int) -> None:
    """Call with 0 ... count - 1, each in a thread of its own; the first in this one."""
    waiting = [_threads(os.getpid()).submit(run, k) for k in range(1, count)]
    run(0)
    for one in waiting:
        one.result()


@functools.cache
def _threads(_process: int) -> ThreadPoolExecutor:
    """Of this process: threads do not survive a fork."""
    return ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="unvanish")
