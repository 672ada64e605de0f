"""Moments of forward values: rms, mean, and how much still differs between the samples of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unvanish.torch.norms import dense
from unvanish.types import Moments

_SMALL = 1 << 16  # bytes: below this the call costs more than the arithmetic, so equal shapes are measured together
_QUEUE_BYTES = 1 << 19  # what waits is still in the cache when it is measured
_QUEUE_LENGTH = 128
_ALIKE = 0.99  # |mean over the batch| / rms above which a difference of squares would lose digits
_EXACT = (torch.float32, torch.float64)  # dtypes measured as they are


def batch_axis(shape: tuple[int, ...], batch_size: int | None) -> int | None:
    """The axis that runs over samples: the first that fits, 0 also where samples and time were folded into one."""
    if batch_size is None or batch_size < 2 or not shape:
        return None
    if shape[0] % batch_size == 0:
        return 0
    return 1 if len(shape) > 2 and shape[1] == batch_size else None


class _Group:
    """Room for tensors of one shape and dtype, reused: fresh memory would cost more than the arithmetic."""

    __slots__ = ("buffer", "keys", "rows")

    def __init__(self, like: Tensor) -> None:
        length = max(1, min(_QUEUE_LENGTH, _QUEUE_BYTES // (like.numel() * like.element_size())))
        self.buffer = torch.empty((length, *like.shape), dtype=like.dtype, device=like.device)
        self.rows = self.buffer.unbind(0)
        self.keys: list[int] = []


class MomentQueue:
    """Collects tensors under a key and measures equal shapes together; ``finish`` returns key -> Moments."""

    def __init__(self, batch_size: int | None = None) -> None:
        self.batch_size = batch_size
        self._groups: dict[tuple[object, ...], _Group] = {}
        self._done: dict[int, Moments] = {}

    def add(self, key: int, tensor: Tensor) -> None:
        """Measure ``tensor`` now if it is large, else a copy of it later (the next op may work in place)."""
        kind = (tensor.dtype, tensor.shape, tensor.layout, tensor.device)
        group = self._groups.get(kind)
        kept = dense(tensor)
        if group is None:
            size = kept.numel() * kept.element_size()
            if size == 0:
                return
            if size > _SMALL:
                self._done[key] = _measure(kept.unsqueeze(0), self.batch_size)[0]
                return
            group = _Group(kept)
            if tensor.layout is torch.strided:  # others of this shape need not hold as many numbers
                self._groups[kind] = group
        group.rows[len(group.keys)].copy_(kept)
        group.keys.append(key)
        if len(group.keys) == len(group.rows) or tensor.layout is not torch.strided:
            self._flush(group)

    def finish(self) -> dict[int, Moments]:
        """Measure what still waits and return everything."""
        for group in self._groups.values():
            if group.keys:
                self._flush(group)
        self._groups.clear()
        return self._done

    def _flush(self, group: _Group) -> None:
        length = len(group.keys)
        self._done.update(zip(group.keys, _measure(group.buffer[:length], self.batch_size), strict=True))
        group.keys.clear()


def moments(tensor: Tensor, batch_size: int | None = None) -> Moments:
    """Moments of one tensor of any dtype."""
    tensor = dense(tensor)
    if tensor.numel() == 0:
        return Moments(count=0, rms=0.0, mean=0.0)
    one = _measure(tensor.unsqueeze(0), batch_size)[0]
    largest = float(tensor.abs().max()) if tensor.dtype != torch.bool else float(tensor.any())
    return Moments(one.count, one.rms, one.mean, one.batch_std, largest, one.nonfinite)


def _measure(stack: Tensor, batch_size: int | None) -> list[Moments]:
    """Moments of tensors of one shape. Float32 throughout, again in float64 for those that leave its range."""
    wide = stack if stack.dtype in _EXACT else stack.to(torch.float32)
    count = stack[0].numel()
    return [
        _moments(row, count) if 1e-15 < row[0] < 1e15 else _slow(stack[i], batch_size)
        for i, row in enumerate(_columns(wide, batch_size))
    ]


def _columns(stack: Tensor, batch_size: int | None) -> list[list[float]]:
    """(rms, mean, batch_std or NaN) of each tensor in a stack."""
    length, count = len(stack), stack[0].numel()
    flat = stack.reshape(length, -1)
    axis = batch_axis(tuple(stack.shape[1:]), batch_size)
    rms = torch.linalg.vector_norm(flat, dim=1) / math.sqrt(count)
    if axis is None:
        columns = torch.stack([rms, flat.sum(dim=1) / count, torch.full_like(rms, math.nan)], dim=1)
        rows: list[list[float]] = columns.tolist()
        return rows
    share = stack.shape[axis + 1] / count
    centre = (stack.sum(dim=axis + 1) / stack.shape[axis + 1]).reshape(length, -1)
    offset = torch.linalg.vector_norm(centre, dim=1) * math.sqrt(share)
    rows = torch.stack([rms, centre.sum(dim=1) * share, offset], dim=1).tolist()
    alike = [i for i, row in enumerate(rows) if row[2] > _ALIKE * row[0]]
    for row in rows:
        row[2] = math.sqrt(max(0.0, row[0] ** 2 - row[2] ** 2))
    if alike:
        stds = _batch_std(stack if len(alike) == length else stack[alike], axis + 1)
        for i, std in zip(alike, stds, strict=True):
            rows[i][2] = std
    return rows


def _batch_std(stack: Tensor, axis: int) -> list[float]:
    """Root mean square over features of the (biased) standard deviation over the batch, for nearly equal samples.

    In float64, for what differs may be tiny, and with the first sample subtracted first: the mean would round it away.
    """
    wide = stack.to(torch.float64)
    shifted = wide - wide.narrow(axis, 0, 1)
    centred = shifted.sub_(shifted.mean(dim=axis, keepdim=True)).reshape(len(stack), -1)
    deviations: list[float] = (torch.linalg.vector_norm(centred, dim=1) / math.sqrt(stack[0].numel())).tolist()
    return deviations


def _slow(tensor: Tensor, batch_size: int | None) -> Moments:
    """One tensor in float64, scaled by its largest finite element; counts what is not finite."""
    wide = tensor.to(torch.float64)
    bad = int((~torch.isfinite(wide)).sum())
    if bad:
        return Moments(tensor.numel(), math.nan, math.nan, None, math.inf, bad)
    scale = float(wide.abs().max()) or 1.0
    row = _columns((wide / scale).unsqueeze(0), batch_size)[0]
    return _moments([value * scale for value in row], tensor.numel())


def _moments(row: list[float], count: int) -> Moments:
    rms, mean, std = row
    return Moments(count, rms, mean, None if math.isnan(std) else std)
