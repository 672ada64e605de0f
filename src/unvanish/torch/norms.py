"""Norms of many tensors, measured in batches, correct from 1e-44 to 1e38.

A float32 L2 norm is 0 below about 1e-22 and inf above 1e19 because the squares leave the range: such tensors, and
only they, are measured again in float64.  Tensors wait in a small queue and are measured together, so that a probe
costs one call per queue and never holds more than ``_QUEUE_BYTES``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_QUEUE_LENGTH = 256
_QUEUE_BYTES = 1 << 17  # what waits is still in the cache when it is measured
_SAFE = (1e-15, 1e18)  # float32 norms between these are exact to rounding
_SAFE_WIDE = (1e-140, 1e150)  # the same for float64


class Norms:
    """Queue of tensors whose L2 norms are wanted; ``add`` returns the slot to read after ``finish``."""

    def __init__(self) -> None:
        self._slots = 0
        self._bytes = 0
        self._waiting: list[tuple[int, Tensor]] = []
        self._values: dict[int, float] = {}
        self._wide = False

    def slot(self) -> int:
        """Reserve a slot to be filled later with ``put``."""
        self._slots += 1
        return self._slots - 1

    def add(self, tensor: Tensor) -> int:
        """Queue a tensor; returns its slot."""
        slot = self.slot()
        self.put(slot, tensor)
        return slot

    def put(self, slot: int, tensor: Tensor) -> None:
        """Queue a tensor for a reserved slot."""
        self._waiting.append((slot, tensor))
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes > _QUEUE_BYTES or len(self._waiting) >= _QUEUE_LENGTH:
            self._flush()

    def log(self, slot: int) -> float | None:
        """ln of the norm in this slot: -inf for exactly zero, NaN or inf as met, None where nothing was put."""
        return log(self.norm(slot))

    def logs(self, slots: dict[int, int]) -> dict[int, float | None]:
        """key -> ln of the norm in the slot of this key."""
        if self._waiting:
            self._flush()
        return {key: log(self._values.get(slot)) for key, slot in slots.items()}

    def norm(self, slot: int) -> float | None:
        """The norm in this slot, or None where nothing was put."""
        if self._waiting:
            self._flush()
        return self._values.get(slot)

    def _flush(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[int], list[Tensor]]] = {}
        for slot, tensor in waiting:
            plain = dense(tensor)
            slots, tensors = groups.setdefault((plain.device, plain.dtype), ([], []))
            slots.append(slot)
            tensors.append(plain)
        for slots, tensors in groups.values():
            # float64 costs more, unless float32 has to be repeated: what was needed last is needed next
            measured = norms(tensors, wide=self._wide)
            self._wide = sum(not _SAFE[0] < value < _SAFE[1] for value in measured) > len(measured) // 2
            self._values.update(zip(slots, measured, strict=True))


def log(norm: float | None) -> float | None:
    """ln of a norm: -inf for exactly zero, NaN for NaN, None for None."""
    if norm is None:
        return None
    return math.log(norm) if norm > 0 else -math.inf if norm == 0 else math.nan


def dense(tensor: Tensor) -> Tensor:
    """The numbers of a tensor as a plain real, strided one: complex, sparse and distributed ones unfolded."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        if tensor.is_sparse:
            tensor = tensor.coalesce().values()
        else:
            tensor = tensor.values() if tensor.layout in (torch.sparse_csr, torch.sparse_csc) else tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def norms(tensors: list[Tensor], *, wide: bool = False) -> list[float]:
    """L2 norms of real tensors of one device and dtype, in float64 where float32 leaves its range (or ``wide``)."""
    if tensors[0].dtype != torch.float64:
        values = _foreach(tensors, torch.float64 if wide else torch.float32)
        if wide:
            return values
        again = [i for i, value in enumerate(values) if not _SAFE[0] < value < _SAFE[1]]
        if again:
            for i, value in zip(again, _foreach([tensors[i] for i in again], torch.float64), strict=True):
                values[i] = value
        return values
    values = _foreach(tensors, torch.float64)
    return [v if _SAFE_WIDE[0] < v < _SAFE_WIDE[1] else scaled_norm(t) for v, t in zip(values, tensors, strict=True)]


def _foreach(tensors: list[Tensor], dtype: torch.dtype) -> list[float]:
    values: list[float] = torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype)).tolist()
    return values


def scaled_norm(tensor: Tensor) -> float:
    """L2 norm with the largest element divided out first, in float64: right wherever the elements are."""
    if tensor.numel() == 0:
        return 0.0
    wide = tensor.to(torch.float64)
    largest = float(wide.abs().max())
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(wide / largest))
