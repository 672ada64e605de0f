"""The compiled step: tables of addresses, and one range of elements for each thread."""

from __future__ import annotations

from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unvanish.torch import loops
from unvanish.torch.rmsprop.eager import SKIPPED
from unvanish.torch.rmsprop.formula import LIMITS, rounding_floor
from unvanish.torch.rmsprop.gather import Batch
from unvanish.torch.rmsprop.settings import Settings


def kernel() -> ModuleType | None:
    """The compiled functions; None where Numba is not installed (extra ``fast``) or told not to compile."""
    if not loops.compiled():
        return None
    from unvanish.torch.rmsprop import kernel as compiled

    return compiled


def step(batch: Batch, s: Settings, lr: float, scale: float) -> int:
    """Update parameters and state of these; returns how many entries were skipped."""
    compiled = kernel()
    assert compiled is not None, "the caller asked"
    plan = batch.plan
    numbers = _numbers(s, lr, scale, plan.dtype)
    corrections = batch.corrections.astype(numbers.dtype)
    centered = numbers if s.centered else None
    momentum = numbers if s.momentum else None
    spans = loops.ranges(int(plan.ends[-1]))
    bad = np.zeros((len(spans), len(plan.p)), dtype=np.int64)

    def run(k: int) -> None:
        low, high = spans[k]
        compiled.step(plan.table, plan.ends, low, high, numbers, corrections, centered, momentum, bad[k])

    loops.each(run, len(spans))
    # PyTorch has seen no write: a graph that saved the old values would go on with the new ones, and say nothing
    torch.autograd.graph.increment_version(chain(plan.p, *plan.kept.values()))
    if bad.any():
        for state, count in zip(plan.states, bad.sum(axis=0).tolist(), strict=True):
            if count:
                state[SKIPPED] = state.get(SKIPPED, 0) + count
    return int(bad.sum())


def _numbers(s: Settings, lr: float, scale: float, dtype: torch.dtype) -> NDArray[Any]:
    inside, coupled = s.eps_inside, not s.decoupled_weight_decay
    numbers = (
        *(s.rho, 1 - s.rho, s.eps if inside else 0.0, 0.0 if inside else s.eps),
        *((lr, 1.0) if s.lr_in_momentum else (1.0, lr)),
        *((s.weight_decay, 1.0) if coupled else (0.0, 1 - lr * s.weight_decay)),
        *(s.momentum, *((1.0, s.momentum) if s.nesterov else (0.0, 1.0))),
        *(scale, LIMITS[dtype], rounding_floor(dtype, s.rho), torch.finfo(dtype).max, 0.0, 1.0),
    )
    return np.array(numbers, dtype=loops.NUMPY[dtype])
