"""From a parameter group to what its update works on, in one loop: with 1,000 small tensors this is the cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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

    states: Sequence[State]
    p: Sequence[Tensor]
    g: Sequence[Tensor]
    v: Sequence[Tensor]
    m: Sequence[Tensor | None]
    b: Sequence[Tensor | None]
    corrections: Sequence[float]


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
    fitting: dict[torch.dtype, list[tuple[Any, ...]]] = defaultdict(list)  # rows of what is a column in Batch
    slots: list[Slot] = []
    rows: list[Slot] = []
    for p in parameters:
        g = p.grad
        if g is None:
            continue
        state = states[p]
        v = state["square_avg"] if "square_avg" in state else average_of(p, state, s)
        m = buffer_of("grad_avg", p, state) if s.centered else None
        b = buffer_of("momentum_buffer", p, state) if s.momentum else None
        correction = correction_of(p, state, s)
        if not s.differentiable and _fits(p, g, v, m, b):
            if compiled:
                fitting[p.dtype].append((state, p, g, v, m, b, correction))
            else:
                slots.append(Slot(state, p, g, v, m, b, correction, flat=True))
            continue
        _check(p, g, v, m, b)
        slot = Slot(state, p, g, v, m, b, correction, flat=False)
        if g.layout is not _STRIDED and sparse.by_rows(g, s):
            rows.append(slot._replace(g=g.coalesce()))
            continue
        slot = in_order(slot, s)
        if compiled and slot.flat and _fits(*slot[1:6]):
            fitting[slot.p.dtype].append(slot[:7])
        else:
            slots.append(slot)
    return Gathered({dtype: Batch(*zip(*fits, strict=True)) for dtype, fits in fitting.items()}, slots, rows)


def _check(p: Tensor, *others: Tensor | None) -> None:
    """Refuse what has no numbers, and what is not of the parameter's size."""
    if p.is_meta:
        raise ValueError(
            f"RMSprop met a parameter of shape {tuple(p.shape)} on the meta device, which has no numbers to update. "
            "Expected a real device. To mend it: materialise the model (to_empty and initialise) before its first step."
        )
    for other in others:
        if other is not None and other.shape != p.shape:
            raise ValueError(
                f"RMSprop met a parameter of shape {tuple(p.shape)} with a gradient or state of shape "
                f"{tuple(other.shape)}: its data was replaced, or the state is that of another model. Expected equal "
                "shapes. To mend it: make a new optimizer for the parameter, or delete optimizer.state[p] and p.grad."
            )


def _fits(p: Tensor, g: Tensor, v: Tensor, m: Tensor | None, b: Tensor | None) -> bool:
    dtype, shape = p.dtype, p.shape
    return (
        dtype in LIMITS
        and g.shape == shape  # the compiled loop would run beyond the end of a smaller one
        and v.shape == shape
        and (m is None or m.shape == shape)
        and (b is None or b.shape == shape)
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
