"""Norms of many tensors, measured in batches, correct from 1e-44 to 1e38.

A float32 L2 norm is 0 below about 1e-22 and inf above 1e19 because the squares leave the range: such tensors, and
only they, are measured again in float64.  Tensors wait in a small queue and are measured together, so that a probe
costs one call per queue and never holds more than ``QUEUE_BYTES``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unvanish.torch.probe import small
from unvanish.torch.probe.buffers import QUEUE_BYTES, QUEUE_LENGTH, Buffers

_STRIDED = torch.strided
_SAFE = (1e-15, 1e18)  # float32 norms between these are exact to rounding
_LIFT = 2.0**100  # brings the smallest float32 number, 1e-45, to 1e-15: its square is still a number
_SAFE_WIDE = (1e-140, 1e150)  # the same for float64


class Norms:
    """Queue of tensors whose L2 norms are wanted, each under the number of a slot."""

    def __init__(self) -> None:
        self.nonfinite: dict[int, int] = {}  # slot -> how many NaN and Inf; only slots that have any
        self._waiting: dict[int, Tensor] = {}
        self._arrivals: dict[object, dict[int, Tensor | None]] = {}
        self._bytes = 0
        self._values: list[float | None] = []  # by slot
        self._scale = 1.0  # power of 2 that brings what was measured last near 1
        self._buffers = Buffers()

    def __len__(self) -> int:
        """How many tensors wait."""
        return len(self._waiting) + sum(map(len, self._arrivals.values()))

    def reserve(self, count: int) -> None:
        """Leave the first ``count`` slots to a caller that numbers them itself."""
        self._values += [None] * (count - len(self._values))

    def slot(self) -> int:
        """Reserve a slot to be filled later with ``put``."""
        self._values.append(None)
        return len(self._values) - 1

    def add(self, tensor: Tensor) -> int:
        """Queue a tensor; returns its slot."""
        slot = self.slot()
        self.put(slot, tensor)
        return slot

    def put(self, slot: int, tensor: Tensor) -> None:
        """Queue a tensor for a reserved slot."""
        self._waiting[slot] = tensor
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes > QUEUE_BYTES or len(self._waiting) >= QUEUE_LENGTH:
            self.flush()

    def arrivals(self, kind: object) -> dict[int, Tensor | None]:
        """Slot -> gradient, all of one shape and dtype; the caller fills it, then flushes."""
        return self._arrivals.setdefault(kind, {})

    def log(self, slot: int) -> float | None:
        """ln of the norm in this slot: -inf for exactly zero, NaN or inf as met, None where nothing was put."""
        return log(self.norm(slot))

    def logs(self) -> list[float | None]:
        """ln of the norm in every slot, None where nothing was put; the norms are forgotten."""
        self.flush()
        self._buffers.clear()
        values, self._values = self._values, []
        for slot, norm in enumerate(values):
            values[slot] = log(norm)
        return values

    def norm(self, slot: int) -> float | None:
        """The norm in this slot, or None where nothing was put."""
        self.flush()
        return self._values[slot]

    def flush(self) -> None:
        """Measure what waits."""
        slots: list[int] = []
        tensors: list[Tensor] = []
        for arrived in self._arrivals.values():
            if not arrived:
                continue
            given = list(arrived.values())
            if small.fit(given):  # one call for all of them, whatever their shapes
                slots += arrived
                tensors += given
            elif (plain := _plain(given)) is not None:
                self._measure(list(arrived), plain)
            else:
                self._waiting.update((slot, tensor) for slot, tensor in arrived.items() if tensor is not None)
            arrived.clear()
        if tensors:
            self._store(slots, tensors, small.norms(tensors))
        if self._waiting:
            self._flush_mixed()

    def _flush_mixed(self) -> None:
        """Measure tensors of any kind, those of equal shape together."""
        groups: dict[tuple[object, ...], tuple[list[int], list[Tensor]]] = {}
        for slot, tensor in self._waiting.items():
            plain = dense(tensor)
            kind = (plain.shape, plain.dtype, plain.device)
            group = groups.get(kind)
            if group is None:
                group = groups[kind] = ([], [])
            group[0].append(slot)
            group[1].append(plain)
        self._waiting.clear()
        self._bytes = 0
        for slots, tensors in groups.values():
            if small.fit(tensors):
                self._store(slots, tensors, small.norms(tensors))
            else:
                self._measure(slots, tensors)

    def _measure(self, slots: list[int], tensors: list[Tensor]) -> None:
        measured = norms(tensors, scale=self._scale, buffers=self._buffers)
        self._scale = _scale(measured[-1])  # what was needed last is needed next
        self._store(slots, tensors, measured)

    def _store(self, slots: list[int], tensors: list[Tensor], measured: list[float]) -> None:
        for slot, norm in zip(slots, measured, strict=True):
            self._values[slot] = norm
        if not math.isfinite(sum(measured)):
            for slot, norm, tensor in zip(slots, measured, tensors, strict=True):
                if not math.isfinite(norm):
                    self.nonfinite[slot] = int((~torch.isfinite(tensor)).sum())


def _plain(given: list[Tensor | None]) -> list[Tensor] | None:
    """The gradients; None unless all are ordinary tensors on one device."""
    tensors = []
    device = None
    for tensor in given:
        if type(tensor) is not Tensor or tensor.requires_grad or tensor.layout is not _STRIDED or tensor.is_complex():
            return None
        if tensor.get_device() != device:
            if device is not None:
                return None
            device = tensor.get_device()
        tensors.append(tensor)
    return tensors


def _scale(norm: float) -> float:
    """1 where float32 is right, else the power of 2 that float32 needs."""
    if norm == 0:
        return _LIFT  # shows that it is zero indeed
    if 1e-12 < norm < 1e12 or not norm < math.inf:
        return 1.0
    return math.ldexp(1.0, max(-126, min(127, -math.frexp(norm)[1])))


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


def norms(tensors: list[Tensor], *, scale: float = 1.0, buffers: Buffers | None = None) -> list[float]:
    """L2 norms of real tensors of one device and dtype, in float64 where float32 leaves its range.

    ``buffers``: the tensors have one shape, and this is room to lay them side by side.  Then they are multiplied by
    ``scale``, a guess that saves measuring all of them again in float64; the norms are those of the tensors as given.
    """
    if tensors[0].dtype == torch.float64:
        values = _foreach(tensors, torch.float64)
        safe = _SAFE_WIDE
        return [v if safe[0] < v < safe[1] else scaled_norm(t) for v, t in zip(values, tensors, strict=True)]
    if buffers is not None and 1 < len(tensors) <= Buffers.length(tensors[0]):
        scale = 1.0 if tensors[0].dtype == torch.float16 else scale  # it would overflow
        values = _stacked(buffers.stack(tensors), scale)
    else:
        values, scale = _foreach(tensors, torch.float32), 1.0
    if _settled(min(values), scale) and _settled(max(values), scale) and math.isfinite(sum(values)):
        return values
    again = [i for i, value in enumerate(values) if not _settled(value, scale)]
    for i, value in zip(again, _foreach([tensors[i] for i in again], torch.float64) if again else (), strict=True):
        values[i] = value
    return values


def _settled(norm: float, scale: float) -> bool:
    """Is this float32 norm of numbers that were multiplied by ``scale`` right?  A zero is, where none can underflow."""
    return _SAFE[0] < norm * scale < _SAFE[1] or (norm == 0 and scale >= _LIFT)


def _stacked(stack: Tensor, scale: float) -> list[float]:
    """Norms of tensors side by side in a buffer of ours, multiplied by a power of 2 while they are measured."""
    flat = stack.reshape(len(stack), -1)
    if scale != 1:
        flat.mul_(scale)
    values: list[float] = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float32).tolist()
    return values if scale == 1 else [value / scale for value in values]


def _foreach(tensors: list[Tensor], dtype: torch.dtype) -> list[float]:
    if len(tensors) == 1:
        return [float(torch.linalg.vector_norm(tensors[0], dtype=dtype))]
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
