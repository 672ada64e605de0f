"""From a parameter group to what its update works on, in one loop: with 1,000 small tensors this is the cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unvanish.torch.rmsprop import sparse
from unvanish.torch.rmsprop.formula import LIMITS
from unvanish.torch.rmsprop.settings import Settings
from unvanish.torch.rmsprop.slots import Slot, State, average_of, buffer_of, correction_of, in_order

_STRIDED = torch.strided


class Batch(NamedTuple):
    """What the compiled step works on: tensors of one dtype on the CPU, each in one piece of memory, in columns."""

    states: list[State]
    p: list[Tensor]
    g: list[Tensor]
    v: list[Tensor]
    m: list[Tensor | None]
    b: list[Tensor | None]
    corrections: list[float]


class Gathered(NamedTuple):
    """The parameters of a group that have a gradient, by the way they are updated."""

    batches: dict[torch.dtype, Batch]
    slots: list[Slot]
    rows: list[Slot]  # with a sparse gradient that need no more than its rows

    def gradients(self) -> list[Tensor]:
        """Of the slots and rows, real and strided."""
        return [slot.g for slot in self.slots] + [slot.g.values() for slot in self.rows]


def gather(parameters: Iterable[Tensor], states: Mapping[Tensor, State], s: Settings, *, compiled: bool) -> Gathered:
    """Find or create the state of all parameters with a gradient, and count their step.

    Args:
        parameters: of the group.
        states: of the optimizer; creates what it lacks.
        s: settings of the group.
        compiled: whether what the compiled step can do shall be left to it.
    """
    found = Gathered({}, [], [])
    for p in parameters:
        g = p.grad
        if g is None:
            continue
        state = states[p]
        v = state["square_avg"] if "square_avg" in state else average_of(p, state, s)
        m = buffer_of("grad_avg", p, state) if s.centered else None
        b = buffer_of("momentum_buffer", p, state) if s.momentum else None
        correction = correction_of(p, state, s)
        if compiled and _fits(p, g, v, m, b):
            _add(found, state, p, g, v, m, b, correction)
            continue
        slot = Slot(state, p, g, v, m, b, correction, flat=False)
        if g.layout is not _STRIDED and sparse.by_rows(g, s):
            found.rows.append(slot._replace(g=g.coalesce()))
            continue
        slot = in_order(slot, s)
        if compiled and slot.flat and _fits(*slot[1:6]):
            _add(found, *slot[:7])
        else:
            found.slots.append(slot)
    return found


def _fits(p: Tensor, g: Tensor, v: Tensor, m: Tensor | None, b: Tensor | None) -> bool:
    dtype = p.dtype
    return (
        dtype in LIMITS
        and g.dtype is dtype
        and v.dtype is dtype
        and p.is_cpu
        and type(g) is Tensor
        and g.layout is _STRIDED
        and p.is_contiguous()
        and g.is_contiguous()
        and v.is_contiguous()
        and (m is None or m.is_contiguous())
        and (b is None or b.is_contiguous())
    )


def _add(
    found: Gathered,
    state: State,
    p: Tensor,
    g: Tensor,
    v: Tensor,
    m: Tensor | None,
    b: Tensor | None,
    correction: Any,
) -> None:
    batch = found.batches.get(p.dtype)
    if batch is None:
        batch = found.batches[p.dtype] = Batch([], [], [], [], [], [], [])
    batch.states.append(state)
    batch.p.append(p)
    batch.g.append(g)
    batch.v.append(v)
    batch.m.append(m)
    batch.b.append(b)
    batch.corrections.append(correction)
