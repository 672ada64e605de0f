"""Moments of forward values: rms, mean, and how much still differs between the samples of a batch."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from unvanish.torch.norms import dense
from unvanish.types import Moments

_SMALL = 1 << 16  # bytes: below this the call costs more than the arithmetic, so equal shapes are measured together
_QUEUE_LENGTH = 128


def batch_axis(shape: tuple[int, ...], batch_size: int | None) -> int | None:
    """The axis that runs over samples: the first that fits, 0 also where samples and time were folded into one."""
    if batch_size is None or batch_size < 2 or not shape:
        return None
    if shape[0] % batch_size == 0:
        return 0
    return 1 if len(shape) > 2 and shape[1] == batch_size else None


class MomentQueue:
    """Collects tensors under a key and measures equal shapes together; ``finish`` returns key -> Moments."""

    def __init__(self, batch_size: int | None = None) -> None:
        self.batch_size = batch_size
        self._waiting: dict[tuple[object, ...], list[tuple[int, Tensor]]] = defaultdict(list)
        self._done: dict[int, Moments] = {}

    def add(self, key: int, tensor: Tensor) -> None:
        """Measure ``tensor`` now if it is large, else a copy of it later (the next op may work in place)."""
        tensor = dense(tensor)
        if tensor.numel() == 0:
            return
        if tensor.numel() * tensor.element_size() > _SMALL:
            self._done[key] = _measure([tensor], self.batch_size)[0]
            return
        group = self._waiting[tensor.dtype, tensor.device, tensor.shape]
        group.append((key, tensor.clone()))
        if len(group) >= _QUEUE_LENGTH:
            self._flush(group)

    def finish(self) -> dict[int, Moments]:
        """Measure what still waits and return everything."""
        for group in self._waiting.values():
            if group:
                self._flush(group)
        return self._done

    def _flush(self, group: list[tuple[int, Tensor]]) -> None:
        measured = _measure([tensor for _, tensor in group], self.batch_size)
        self._done.update(zip((key for key, _ in group), measured, strict=True))
        group.clear()


def moments(tensor: Tensor, batch_size: int | None = None) -> Moments:
    """Moments of one tensor of any dtype."""
    tensor = dense(tensor)
    if tensor.numel() == 0:
        return Moments(count=0, rms=0.0, mean=0.0)
    one = _measure([tensor], batch_size)[0]
    largest = float(tensor.abs().max()) if tensor.dtype != torch.bool else float(tensor.any())
    return Moments(one.count, one.rms, one.mean, one.batch_std, largest, one.nonfinite)


def _measure(tensors: list[Tensor], batch_size: int | None) -> list[Moments]:
    """Moments of tensors of one shape. Float32 throughout, again in float64 for those that leave its range."""
    stack = tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)
    wide = stack if stack.dtype in (torch.float32, torch.float64) else stack.to(torch.float32)
    measured = _columns(wide, batch_size)
    return [
        _moments(row, tensors[0].numel()) if _in_range(row) else _slow(tensor, batch_size)
        for row, tensor in zip(measured, tensors, strict=True)
    ]


def _columns(stack: Tensor, batch_size: int | None) -> list[list[float]]:
    """(rms, mean, batch_std or NaN) of each tensor in a stack."""
    count = stack[0].numel()
    flat = stack.reshape(len(stack), -1)
    rms = torch.linalg.vector_norm(flat, dim=1) / math.sqrt(count)
    mean = flat.sum(dim=1) / count
    axis = batch_axis(tuple(stack.shape[1:]), batch_size)
    std = torch.full_like(rms, math.nan) if axis is None else _batch_std(stack, axis + 1, count)
    return torch.stack([rms, mean, std], dim=1).tolist()  # type: ignore[no-any-return]


def _batch_std(stack: Tensor, axis: int, count: int) -> Tensor:
    """Root mean square over features of the (biased) standard deviation over the batch.

    The first sample is subtracted first: the mean of nearly equal samples would round away what differs.
    """
    shifted = stack - stack.narrow(axis, 0, 1)
    centred = shifted - shifted.mean(dim=axis, keepdim=True)
    return torch.linalg.vector_norm(centred.reshape(len(stack), -1), dim=1) / math.sqrt(count)


def _in_range(row: list[float]) -> bool:
    return 1e-15 < row[0] < 1e15


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
