"""The compiled step: tables of addresses, and one range of elements for each thread."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unvanish.torch.rmsprop.eager import SKIPPED
from unvanish.torch.rmsprop.formula import LIMITS, rounding_floor
from unvanish.torch.rmsprop.gather import Batch
from unvanish.torch.rmsprop.settings import Settings

WORTH_A_THREAD = 1 << 20  # elements: below about 20 MiB of traffic, waking a thread costs more than it saves
_NUMPY: dict[torch.dtype, type[np.floating[Any]]] = {torch.float32: np.float32, torch.float64: np.float64}


@functools.cache
def kernel() -> ModuleType | None:
    """The compiled functions; None where Numba is not installed (extra ``fast``) or told not to compile."""
    if importlib.util.find_spec("numba") is None:
        return None
    import numba

    if numba.config.DISABLE_JIT:
        return None
    from unvanish.torch.rmsprop import kernel as compiled

    return compiled


def step(batch: Batch, s: Settings, lr: float, scale: float) -> int:
    """Update parameters and state of these; returns how many entries were skipped."""
    compiled = kernel()
    assert compiled is not None, "the caller asked"
    numbers = _numbers(s, lr, scale, batch.p[0].dtype)
    corrections = np.array(batch.corrections, dtype=numbers.dtype)
    table, offsets = _table(batch), _offsets(batch.p)
    centered = numbers if s.centered else None
    momentum = numbers if s.momentum else None
    ranges = _ranges(int(offsets[-1]))
    bad = np.zeros((len(ranges), len(batch.p)), dtype=np.int64)

    def run(k: int) -> None:
        low, high = ranges[k]
        compiled.step(table, offsets, low, high, numbers, corrections, centered, momentum, bad[k])

    _each(run, len(ranges))
    if bad.any():
        for state, count in zip(batch.states, bad.sum(axis=0).tolist(), strict=True):
            if count:
                state[SKIPPED] = state.get(SKIPPED, 0) + count
    return int(bad.sum())


def square_sums(gradients: Sequence[Tensor]) -> list[float]:
    """Sum of the squares of each, in float64; they have one dtype."""
    compiled = kernel()
    assert compiled is not None, "the caller asked"
    addresses = np.array([g.data_ptr() for g in gradients], dtype=np.int64)
    offsets = _offsets(gradients)
    like = np.zeros(0, _NUMPY[gradients[0].dtype])
    ranges = _ranges(int(offsets[-1]))
    sums = np.zeros((len(ranges), len(gradients)))
    _each(lambda k: compiled.square_sums(addresses, offsets, *ranges[k], like, sums[k]), len(ranges))
    result: list[float] = sums.sum(axis=0).tolist()
    return result


def _table(batch: Batch) -> NDArray[np.int64]:
    """A column of addresses for each parameter; 0 where there is no such tensor."""
    table = np.zeros((5, len(batch.p)), dtype=np.int64)
    columns: tuple[Sequence[Tensor | None], ...] = (batch.p, batch.g, batch.v, batch.m, batch.b)
    for row, tensors in enumerate(columns):
        if tensors[0] is not None:
            table[row] = [tensor.data_ptr() for tensor in tensors if tensor is not None]
    return table


def _offsets(tensors: Sequence[Tensor]) -> NDArray[np.int64]:
    offsets = np.zeros(len(tensors) + 1, dtype=np.int64)
    np.cumsum([tensor.numel() for tensor in tensors], out=offsets[1:])
    return offsets


def _numbers(s: Settings, lr: float, scale: float, dtype: torch.dtype) -> NDArray[Any]:
    inside, coupled = s.eps_inside, not s.decoupled_weight_decay
    numbers = (
        *(s.rho, 1 - s.rho, s.eps if inside else 0.0, 0.0 if inside else s.eps),
        *((lr, 1.0) if s.lr_in_momentum else (1.0, lr)),
        *((s.weight_decay, 1.0) if coupled else (0.0, 1 - lr * s.weight_decay)),
        *(s.momentum, *((1.0, s.momentum) if s.nesterov else (0.0, 1.0))),
        *(scale, LIMITS[dtype], rounding_floor(dtype, s.rho), torch.finfo(dtype).max, 0.0, 1.0),
    )
    return np.array(numbers, dtype=_NUMPY[dtype])


def _ranges(total: int) -> list[tuple[int, int]]:
    count = max(1, min(torch.get_num_threads(), total // WORTH_A_THREAD))
    return [(total * k // count, total * (k + 1) // count) for k in range(count)]


def _each(run: Callable[[int], None], count: int) -> None:
    """Call with 0 ... count - 1, each in a thread of its own; the first in this one."""
    waiting = [_threads(os.getpid()).submit(run, k) for k in range(1, count)]
    run(0)
    for one in waiting:
        one.result()


@functools.cache
def _threads(_process: int) -> ThreadPoolExecutor:
    """Of this process: threads do not survive a fork."""
    return ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="unvanish-rmsprop")
