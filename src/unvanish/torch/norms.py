"""Norms of many tensors, measured in batches, correct from 1e-44 to 1e38.

A float32 L2 norm is 0 below about 1e-22 and inf above 1e19 because the squares leave the range: such tensors, and
only they, are measured again in float64.  Tensors wait in a small queue and are measured together, so that a probe
costs one call per queue and never holds more than ``_QUEUE_BYTES``.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

_QUEUE_LENGTH = 256
_QUEUE_BYTES = 4 << 20
_SAFE = (1e-15, 1e18)  # float32 norms between these are exact to rounding


class Norms:
    """Queue of tensors whose L2 norms are wanted; ``add`` returns the slot to read after ``finish``."""

    def __init__(self) -> None:
        self._slots = 0
        self._bytes = 0
        self._waiting: list[tuple[int, Tensor]] = []
        self._values: dict[int, float] = {}

    def slot(self) -> int:
        """Reserve a slot to be filled later with ``put``."""
        self._slots += 1
        return self._slots - 1

    def put(self, slot: int, tensor: Tensor) -> None:
        """Queue a tensor for a reserved slot."""
        self._waiting.append((slot, tensor))
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes > _QUEUE_BYTES or len(self._waiting) >= _QUEUE_LENGTH:
            self._flush()

    def log(self, slot: int) -> float | None:
        """ln of the norm in this slot: -inf for exactly zero, NaN or inf as met, None where nothing was put."""
        value = self.norm(slot)
        if value is None:
            return None
        return -math.inf if value == 0 else math.log(value) if value > 0 else math.nan

    def norm(self, slot: int) -> float | None:
        """The norm in this slot, or None where nothing was put."""
        self._flush()
        return self._values.get(slot)

    def _flush(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        groups: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = defaultdict(list)
        for slot, tensor in waiting:
            tensor = dense(tensor)
            groups[tensor.device, tensor.dtype].append((slot, tensor))
        for group in groups.values():
            measured = norms([tensor for _, tensor in group])
            self._values.update(zip((slot for slot, _ in group), measured, strict=True))


def dense(tensor: Tensor) -> Tensor:
    """The numbers of a tensor as a plain real, strided one: complex, sparse and distributed ones unfolded."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.layout != torch.strided:
        tensor = tensor.values() if tensor.layout in (torch.sparse_csr, torch.sparse_csc) else tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def norms(tensors: list[Tensor]) -> list[float]:
    """L2 norms of real tensors of one device and dtype, in float64 where float32 would leave its range."""
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    values: list[float] = torch.stack(torch._foreach_norm(tensors, 2, dtype=wide)).tolist()  # type: ignore[no-untyped-call, unused-ignore]
    for i, value in enumerate(values):
        if not _SAFE[0] < value < _SAFE[1]:
            values[i] = scaled_norm(tensors[i])
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
