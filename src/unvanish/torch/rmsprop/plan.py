"""What the compiled step knows of its tensors, kept from one step to the next and checked at each.

With 1,000 small tensors the calls that ask a tensor for something, 80 ns each, take as long as the arithmetic.  Here
are the fewest that notice whatever may have been done to parameters, gradients and state in between: memory that is
not theirs any more must never be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, is_
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unvanish.torch import loops
from unvanish.torch.rmsprop.settings import Settings
from unvanish.torch.rmsprop.slots import Slot, State, correction_of

G = 1  # row of the gradients in a table of addresses
_STATE = {"square_avg": 2, "grad_avg": 3, "momentum_buffer": 4}  # rows
_gradient = attrgetter("grad")
_bytes = attrgetter("nbytes")
_address = Tensor.data_ptr


@final
@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Tensors of one dtype on the CPU, each in one piece of memory; all but the gradients, which are new each time.

    ``table`` has a row of addresses for parameters, gradients, average squares, average gradients, momentum buffers;
    0 where there is no such tensor.
    """

    dtype: torch.dtype
    states: Sequence[State]
    p: Sequence[Tensor]
    kept: Mapping[str, Sequence[Tensor]]  # of the state
    table: NDArray[np.int64]
    places: Mapping[int, Sequence[int]]  # its rows that stay, as lists: these are compared at each step
    ends: NDArray[np.int64]
    filled: NDArray[np.int64]  # numbers of those that have entries
    sizes: Sequence[int]  # bytes
    single: Sequence[int]  # numbers of those with one element: autograd may hand over the conjugate's, sign outstanding

    @classmethod
    def of(cls, slots: Sequence[Slot]) -> Plan:
        """Of slots that fit."""
        columns = dict(zip(Slot._fields, zip(*slots, strict=True), strict=True))
        p: tuple[Tensor, ...] = columns["p"]
        kept = {key: columns[name] for key, name in zip(_STATE, "vmb", strict=True) if columns[name][0] is not None}
        places = {0: list(map(_address, p))} | {_STATE[key]: list(map(_address, kept[key])) for key in kept}
        table = np.zeros((5, len(p)), dtype=np.int64)
        for row, place in places.items():
            table[row] = place
        ends = loops.offsets(p)
        counts = np.diff(ends)
        filled, single = np.flatnonzero(counts), np.flatnonzero(counts == 1).tolist()
        return cls(p[0].dtype, columns["state"], p, kept, table, places, ends, filled, list(map(_bytes, p)), single)

    def gradients(self, s: Settings) -> list[Tensor] | None:
        """Those of this step, their addresses put into the table; None unless all is as it was when this was made."""
        if ("grad_avg" in self.kept, "momentum_buffer" in self.kept) != (s.centered, s.momentum != 0):
            return None
        gradients = list(map(_gradient, self.p))
        if set(map(type, gradients)) != {Tensor}:  # None, or a kind of tensor of its own
            return None
        for key, tensors in self.kept.items():
            same = all(map(is_, tensors, [state.get(key) for state in self.states]))
            if not (same and self._in_place(_STATE[key], tensors)):
                return None
        if not (all(map(Tensor.is_contiguous, self.p)) and self._in_place(0, self.p)):
            return None
        return gradients if self.take(gradients) else None

    def _in_place(self, row: int, tensors: Sequence[Tensor]) -> bool:
        """Still at its address, and of its size."""
        return list(map(_address, tensors)) == self.places[row] and self._sized(tensors)

    def _sized(self, tensors: Sequence[Tensor]) -> bool:
        return list(map(_bytes, tensors)) == self.sizes

    def take(self, gradients: Sequence[Tensor]) -> bool:
        """Put the addresses of these gradients into the table, if they are what the compiled step takes.

        PyTorch has seen to it that they have the dtype of their parameters.
        """
        whole = all(map(Tensor.is_contiguous, gradients))  # first: sparse ones are not, and have no size and address
        if not whole or not self._sized(gradients) or any(gradients[i].is_neg() for i in self.single):
            return False
        found = list(map(_address, gradients))
        self.table[G] = found
        return 0 not in found or bool(self.table[G, self.filled].all())  # one that stands for zeros has no memory

    def count(self, s: Settings) -> NDArray[np.float64]:
        """Count the step; returns the corrections of the averages."""
        if not s.bias_correction:
            for state in self.states:
                state["step"] = state["step"] + 1
            return np.ones(len(self.p))
        return np.array([correction_of(p, state, s) for p, state in zip(self.p, self.states, strict=True)])
