"""From a parameter group to what its update works on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import is_
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unvanish.torch.rmsprop import sparse
from unvanish.torch.rmsprop.formula import LIMITS
from unvanish.torch.rmsprop.plan import Plan
from unvanish.torch.rmsprop.settings import Settings
from unvanish.torch.rmsprop.slots import Slot, State, average_of, buffer_of, correction_of, in_order

_STRIDED = torch.strided


class Batch(NamedTuple):
    """What one call of the compiled step works on."""

    plan: Plan
    gradients: Sequence[Tensor]
    corrections: NDArray[np.float64]

    @classmethod
    def of(cls, slots: Sequence[Slot]) -> Batch:
        """Of slots that fit."""
        plan, gradients = Plan.of(slots), [slot.g for slot in slots]
        plan.take(gradients)
        return cls(plan, gradients, np.array([slot.correction for slot in slots]))


class Known(NamedTuple):
    """What the next step may find as it was at this one."""

    parameters: Sequence[Tensor]
    plans: Sequence[Plan]
    others: Sequence[Tensor]  # parameters in none of the plans


class Gathered(NamedTuple):
    """The parameters of a group that have a gradient, by the way they are updated."""

    batches: list[Batch]
    slots: list[Slot]
    rows: list[Slot]  # with a sparse gradient that need no more than its rows
    known: Known

    def gradients(self) -> list[Tensor]:
        """Of the slots and rows, real and strided."""
        return [slot.g for slot in self.slots] + [slot.g.values() for slot in self.rows]


def gather(
    parameters: Sequence[Tensor], states: Mapping[Tensor, State], s: Settings, *, compiled: bool, known: Known | None
) -> Gathered:
    """Find or create the state of all parameters with a gradient, and count their step.

    Args:
        parameters: of the group.
        states: of the optimizer; creates what it lacks.
        s: settings of the group.
        compiled: whether what the compiled step can do shall be left to it.
        known: from the last step, if ``states`` has the same entries still.
    """
    batches = _as_before(parameters, s, known) if compiled and known else None
    if known is None or batches is None:
        known, batches = Known((), (), parameters), []
    fitting: dict[torch.dtype, list[Slot]] = defaultdict(list)
    made: dict[torch.dtype, list[Slot]] = defaultdict(list)  # fit in another form: as pairs, as a line
    slots: list[Slot] = []
    rows: list[Slot] = []
    others: list[Tensor] = []
    for p in known.others:
        if p.grad is None:
            others.append(p)
            continue
        slot = _slot(p, p.grad, states[p], s)
        if compiled and _fits(*slot[1:6]):
            fitting[p.dtype].append(slot)
            continue
        others.append(p)
        _check(*slot[1:6])
        if slot.g.layout is not _STRIDED and sparse.by_rows(slot.g, s):
            rows.append(slot._replace(g=slot.g.coalesce()))
            continue
        slot = in_order(slot, s)
        (made[slot.p.dtype] if compiled and slot.flat and _fits(*slot[1:6]) else slots).append(slot)
    new = [Batch.of(members) for members in fitting.values()]
    batches += new + [Batch.of(members) for members in made.values()]
    return Gathered(
        batches, slots, rows, Known(list(parameters), [*known.plans, *(batch.plan for batch in new)], others)
    )


def _as_before(parameters: Sequence[Tensor], s: Settings, known: Known) -> list[Batch] | None:
    """The batches of the last step with the gradients of this one; None where anything about them is new."""
    if len(parameters) != len(known.parameters) or not all(map(is_, parameters, known.parameters)):
        return None
    found = [(plan, gradients) for plan in known.plans if (gradients := plan.gradients(s))]
    if len(found) < len(known.plans):
        return None
    return [Batch(plan, gradients, plan.count(s)) for plan, gradients in found]


def _slot(p: Tensor, g: Tensor, state: State, s: Settings) -> Slot:
    v = state["square_avg"] if "square_avg" in state else average_of(p, state, s)
    m = buffer_of("grad_avg", p, state) if s.centered else None
    b = buffer_of("momentum_buffer", p, state) if s.momentum else None
    return Slot(state, p, g, v, m, b, correction_of(p, state, s))


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
        and not (p.is_neg() or g.is_neg())  # their memory has the other sign
        and type(g) is Tensor
        and g.layout is _STRIDED
        and p.is_contiguous()
        and g.is_contiguous()
        and not g._is_zerotensor()  # it has no memory
        and v.is_contiguous()
        and (m is None or m.is_contiguous())
        and (b is None or b.is_contiguous())
    )
