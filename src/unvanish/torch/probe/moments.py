"""Moments of forward values: rms, mean, and how much still differs between the samples of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unvanish.torch.probe.buffers import Buffers
from unvanish.torch.probe.norms import dense
from unvanish.types import Moments

_SMALL = 1 << 16  # bytes: below this the call costs more than the arithmetic, so equal shapes are measured together
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
    """The buffer of one kind of tensors, filled row by row."""

    __slots__ = ("buffer", "keys", "rows")

    def __init__(self, like: Tensor) -> None:
        self.buffer = torch.empty((Buffers.length(like), *like.shape), dtype=like.dtype, device=like.device)
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
                self._done[key] = measure(kept.unsqueeze(0), self.batch_size)[0]
                return
            group = _Group(kept)
            if tensor.layout is torch.strided:  # others of this shape need not hold as many numbers
                self._groups[kind] = group
        group.rows[len(group.keys)].copy_(kept)
        group.keys.append(key)
        if len(group.keys) == len(group.rows) or tensor.layout is not torch.strided:
            self._flush(group)

    def add_stack(self, keys: list[int], stack: Tensor) -> None:
        """Measure tensors of one shape that lie side by side; they are overwritten."""
        self._done.update(zip(keys, measure(stack, self.batch_size, ours=True), strict=True))

    def finish(self) -> dict[int, Moments]:
        """Measure what still waits and return everything."""
        for group in self._groups.values():
            if group.keys:
                self._flush(group)
        self._groups.clear()
        return self._done

    def _flush(self, group: _Group) -> None:
        length = len(group.keys)
        self._done.update(zip(group.keys, measure(group.buffer[:length], self.batch_size, ours=True), strict=True))
        group.keys.clear()


def moments(tensor: Tensor, batch_size: int | None = None) -> Moments:
    """Moments of one tensor of any dtype."""
    tensor = dense(tensor)
    if tensor.numel() == 0:
        return Moments(count=0, rms=0.0, mean=0.0)
    one = measure(tensor.unsqueeze(0), batch_size)[0]
    largest = float(tensor.abs().max()) if tensor.dtype != torch.bool else float(tensor.any())
    return Moments(one.count, one.rms, one.mean, one.batch_std, largest, one.nonfinite)


def measure(stack: Tensor, batch_size: int | None, *, ours: bool = False) -> list[Moments]:
    """Moments of tensors of one shape. Float32 throughout, again in float64 for those that leave its range.

    ``ours``: the stack is a buffer that nobody reads afterwards, so that it may be overwritten instead of copied.
    """
    wide = stack if stack.dtype in _EXACT else stack.to(torch.float32)
    count = stack[0].numel()
    rows = _columns(wide, batch_size)
    slow = {i: _slow(stack[i], batch_size) for i, row in enumerate(rows) if not 1e-15 < row[0] < 1e15}
    _tell_apart(rows, wide, batch_size, ours=ours or wide is not stack)
    return [slow[i] if i in slow else _moments(row, count) for i, row in enumerate(rows)]


def _columns(stack: Tensor, batch_size: int | None) -> list[list[float]]:
    """(rms, mean, rms of the mean over the batch or NaN) of each tensor in a stack."""
    length, count = len(stack), stack[0].numel()
    flat = stack.reshape(length, -1)
    axis = batch_axis(tuple(stack.shape[1:]), batch_size)
    norm, root = torch.linalg.vector_norm(flat, dim=1), math.sqrt(count)
    if axis is None:
        sums = torch.stack([norm, flat.sum(dim=1)], dim=1).tolist()
        return [[size / root, total / count, math.nan] for size, total in sums]
    total = stack.sum(dim=axis + 1).reshape(length, -1)
    columns = torch.stack([norm, total.sum(dim=1), torch.linalg.vector_norm(total, dim=1)], dim=1)
    spread = math.sqrt(stack.shape[axis + 1] * count)
    return [[size / root, total / count, centre / spread] for size, total, centre in columns.tolist()]


def _tell_apart(rows: list[list[float]], stack: Tensor, batch_size: int | None, *, ours: bool) -> None:
    """Turn the third column, the rms of the mean over the batch, into the standard deviation around it."""
    alike = [i for i, row in enumerate(rows) if row[2] > _ALIKE * row[0]]
    for row in rows:
        row[2] = math.sqrt(max(0.0, row[0] * row[0] - row[2] * row[2])) if row[2] == row[2] else row[2]
    axis = batch_axis(tuple(stack.shape[1:]), batch_size)
    if alike and axis is not None:
        few = 2 * len(alike) < len(stack)
        stds = _batch_std(stack[alike] if few else stack, axis + 1, ours=ours or few)
        for place, i in enumerate(alike):
            rows[i][2] = stds[place if few else i]


def _batch_std(stack: Tensor, axis: int, *, ours: bool) -> list[float]:
    """Root mean square over features of the (biased) standard deviation over the batch, for nearly equal samples.

    With the first sample subtracted first: the difference of floats is exact where they are close, while the mean
    would round away what differs.  In float64 where the first sample stands far out or the squares underflow.
    """
    first = stack.narrow(axis, 0, 1)
    shifted = stack.sub_(first.clone()) if ours else stack - first
    length, count, samples = len(stack), stack[0].numel(), stack.shape[axis]
    norm = torch.linalg.vector_norm(shifted.reshape(length, -1), dim=1)
    total = torch.linalg.vector_norm(shifted.sum(dim=axis).reshape(length, -1), dim=1)
    pairs = torch.stack([norm, total], dim=1).tolist()
    squares = [size * size - centre * centre / samples for size, centre in pairs]
    stds = [math.sqrt(max(0.0, square) / count) for square in squares]
    for i, (size, _) in enumerate(pairs):
        if not (squares[i] > 0.1 * size * size > 1e-28):
            stds[i] = _exact_std(shifted[i], axis - 1)
    return stds


def _exact_std(shifted: Tensor, axis: int) -> float:
    """The same of one tensor, centred in float64."""
    if not shifted.any():
        return 0.0
    wide = shifted.to(torch.float64)
    centred = wide.sub_(wide.mean(dim=axis, keepdim=True))
    return float(torch.linalg.vector_norm(centred)) / math.sqrt(shifted.numel())


def _slow(tensor: Tensor, batch_size: int | None) -> Moments:
    """One tensor in float64, scaled by its largest finite element; counts what is not finite."""
    wide = tensor.to(torch.float64)
    bad = int((~torch.isfinite(wide)).sum())
    if bad:
        return Moments(tensor.numel(), math.nan, math.nan, None, math.inf, bad)
    scale = float(wide.abs().max()) or 1.0
    stack = (wide / scale).unsqueeze(0)
    rows = _columns(stack, batch_size)
    _tell_apart(rows, stack, batch_size, ours=True)
    return _moments([value * scale for value in rows[0]], tensor.numel())


def _moments(row: list[float], count: int) -> Moments:
    rms, mean, std = row
    return Moments(count, rms, mean, None if math.isnan(std) else std)
