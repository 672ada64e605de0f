"""Moments of forward values: rms, mean, and how much still differs between the samples of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unvanish.torch.probe import small
from unvanish.torch.probe.buffers import Buffers
from unvanish.torch.probe.frozen import maker
from unvanish.torch.probe.norms import dense
from unvanish.types import Moments

_SMALL = 1 << 16  # bytes: below this the call costs more than the arithmetic, so equal shapes are measured together
_ROWS = 16  # of a buffer, made ready at a time
_ALIKE = 0.99  # |mean over the batch| / rms above which a difference of squares would lose digits
_EXACT = (torch.float32, torch.float64)  # dtypes measured as they are
_TINY = 1e-14  # the square of a smaller float32 norm has lost digits
_LIFT = 2.0**100  # brings the smallest float32 number to 1e-15, and _TINY to 1e16
_STRIDED = torch.strided

_Row = tuple[float, float, float | None]
_new = maker(Moments)


def batch_axis(shape: tuple[int, ...], batch_size: int | None) -> int | None:
    """The axis that runs over samples: 0, or 1 behind time; else 0 where samples and time were folded into one."""
    if batch_size is None or batch_size < 2 or not shape:
        return None
    if shape[0] != batch_size and len(shape) > 2 and shape[1] == batch_size:
        return 1
    return 0 if shape[0] % batch_size == 0 else None


class _Group:
    """The buffer of one kind of tensors, filled row by row."""

    __slots__ = ("buffer", "keys", "length", "rows")

    def __init__(self, like: Tensor) -> None:
        self.length = Buffers.length(like)
        self.buffer = torch.empty((self.length, *like.shape), dtype=like.dtype, device=like.device)
        self.rows: list[Tensor] = []
        self.keys: list[int] = []

    def put(self, key: int, tensor: Tensor) -> None:
        """Copy it into the next row; the rows are cut a few at a time, for most small nets never need them all."""
        index = len(self.keys)
        if index == len(self.rows):
            self.rows += self.buffer[index : index + _ROWS].unbind(0)
        self.rows[index].copy_(tensor)
        self.keys.append(key)


class MomentQueue:
    """Collects tensors under a key and measures equal shapes together; ``finish`` returns key -> Moments."""

    def __init__(self, batch_size: int | None = None) -> None:
        self.batch_size = batch_size
        self._groups: dict[tuple[object, ...], _Group] = {}
        self._done: dict[int, Moments | None] = {}  # None: claimed, and to come
        self._scratch = Buffers()

    def claimed(self, key: int) -> bool:
        """Has somebody taken it upon himself to measure what goes by this key?"""
        return key in self._done

    def claim(self, key: int) -> bool:
        """Is it the caller's turn to measure what goes by this key?  Only the first who asks is told so."""
        if key in self._done:
            return False
        self._done[key] = None
        return True

    def add(self, key: int, tensor: Tensor) -> None:
        """Measure ``tensor`` now, or a copy of it later if it is small and there is no compiled loop for it.

        The next op may work in place.
        """
        ordinary = type(tensor) is Tensor
        if ordinary and small.fits(tensor):
            self._done[key] = small.moments(tensor, batch_axis(tensor.shape, self.batch_size))
            return
        plain = ordinary and tensor.layout is _STRIDED and not tensor.is_complex()
        kept = tensor.detach() if plain else dense(tensor)
        kind = (kept.shape, kept.dtype, kept.device)
        group = self._groups.get(kind)
        if group is None:
            size = kept.numel() * kept.element_size()
            if size == 0:
                return
            if size > _SMALL:
                self._done[key] = measure(kept.unsqueeze(0), self.batch_size)[0]
                return
            group = self._groups[kind] = _Group(kept)
        group.put(key, kept)
        if len(group.keys) == group.length:
            self._flush(group)

    def add_measured(self, keys: list[int], measured: list[Moments]) -> None:
        """Take what was measured elsewhere; a negative key is nobody's."""
        self._done.update((key, one) for key, one in zip(keys, measured, strict=True) if key >= 0)

    def add_stack(self, keys: list[int], stack: Tensor, scratch: Tensor | None) -> None:
        """Measure tensors of one shape that lie side by side; ``scratch``, as much room again, is overwritten."""
        self._done.update(zip(keys, measure(stack, self.batch_size, scratch), strict=True))

    def take(self, keys: list[int]) -> list[Moments | None]:
        """Finish, and hand over those of the keys; None where nothing was measured."""
        self.finish()
        return [self._done.get(key) for key in keys]

    def clear(self) -> None:
        """Forget what was measured."""
        self._done.clear()

    def finish(self) -> dict[int, Moments | None]:
        """Measure what still waits, let go of the memory, and return everything; None for what was claimed only."""
        for group in self._groups.values():
            if group.keys:
                self._flush(group)
        self._groups.clear()
        self._scratch.clear()
        return self._done

    def _flush(self, group: _Group) -> None:
        stack = group.buffer if len(group.keys) == group.length else group.buffer[: len(group.keys)]
        self.add_stack(group.keys, stack, self._scratch.like(stack))
        group.keys.clear()


def moments(tensor: Tensor, batch_size: int | None = None) -> Moments:
    """Moments of one tensor of any dtype."""
    tensor = dense(tensor)
    if tensor.numel() == 0:
        return Moments(count=0, rms=0.0, mean=0.0)
    one = measure(tensor.unsqueeze(0), batch_size)[0]
    largest = float(tensor.abs().max()) if tensor.dtype != torch.bool else float(tensor.any())
    return Moments(one.count, one.rms, one.mean, one.batch_std, largest, one.nonfinite)


def measure(stack: Tensor, batch_size: int | None, scratch: Tensor | None = None) -> list[Moments]:
    """Moments of tensors of one shape. Float32 throughout, again in float64 for those that leave its range.

    ``scratch``: room for as much again, where there is some; it saves fresh memory.
    """
    wide = stack if stack.dtype in _EXACT else stack.to(torch.float32)
    rows = _rows(wide, batch_size, scratch if wide is stack else None)
    count = stack[0].numel()
    return [
        _new(count, rms, mean, std) if 1e-15 < rms < 1e15 else _slow(stack[i], batch_size)
        for i, (rms, mean, std) in enumerate(rows)
    ]


def _rows(stack: Tensor, batch_size: int | None, scratch: Tensor | None) -> list[_Row]:
    """(rms, mean, standard deviation over the batch) of each tensor in a stack."""
    flat = stack.reshape(len(stack), -1)
    count = flat.shape[1]
    root = math.sqrt(count)
    norms: list[float] = torch.linalg.vector_norm(flat, dim=1).tolist()
    axis = batch_axis(tuple(stack.shape[1:]), batch_size)
    if axis is None:
        sums: list[float] = flat.sum(dim=1).tolist()
        return [(norm / root, one / count, None) for norm, one in zip(norms, sums, strict=True)]
    total = stack.sum(dim=axis + 1).reshape(len(norms), -1)
    sums, centres = total.sum(dim=1).tolist(), torch.linalg.vector_norm(total, dim=1).tolist()
    samples = stack.shape[axis + 1]
    near = _ALIKE * math.sqrt(samples)
    alike = [i for i, norm in enumerate(norms) if centres[i] > near * norm]
    stds = [math.sqrt(max(0.0, a * a - b * b / samples)) / root for a, b in zip(norms, centres, strict=True)]
    if alike:
        for i, std in zip(alike, _batch_stds(stack, axis + 1, alike, scratch), strict=True):
            stds[i] = std
    return [(norm / root, one / count, std) for norm, one, std in zip(norms, sums, stds, strict=True)]


def _batch_stds(stack: Tensor, axis: int, wanted: list[int], scratch: Tensor | None) -> list[float]:
    """Root mean square over features of the (biased) standard deviation over the batch, for nearly equal samples.

    With the first sample subtracted first: the difference of floats is exact where they are close, while the mean
    would round away what differs.  In float64 where the first sample stands far out.
    """
    shifted = torch.sub(stack, stack.narrow(axis, 0, 1), out=scratch)
    root, samples = math.sqrt(stack[0].numel()), stack.shape[axis]
    near = _sizes(shifted, axis)
    far = near
    if any(near[i][0] < _TINY for i in wanted):  # squares may underflow: the same, multiplied by a power of 2
        far = _sizes(shifted.mul_(_LIFT), axis)
    stds = []
    for i in wanted:
        tiny = near[i][0] < _TINY
        size, centre = far[i] if tiny else near[i]
        square = size * size - centre * centre / samples
        if square > 0.1 * size * size:
            stds.append(math.sqrt(square) / root / (_LIFT if tiny else 1.0))
        elif size == 0 and stack.dtype is torch.float32:  # all samples are equal: the lift leaves no other zero
            stds.append(0.0)
        else:
            stds.append(_exact_std(stack[i], axis - 1))
    return stds


def _sizes(shifted: Tensor, axis: int) -> list[tuple[float, float]]:
    """Of each tensor in a stack: its norm, and the norm of its sum over the batch."""
    total = shifted.sum(dim=axis).reshape(len(shifted), -1)
    norms, centres = (
        torch.linalg.vector_norm(part, dim=1).tolist() for part in (shifted.reshape(len(shifted), -1), total)
    )
    return list(zip(norms, centres, strict=True))


def _exact_std(tensor: Tensor, axis: int) -> float:
    """The same of one tensor, in float64."""
    wide = tensor.to(torch.float64)
    shifted = wide - wide.narrow(axis, 0, 1)
    if not shifted.any():
        return 0.0
    centred = shifted.sub_(shifted.mean(dim=axis, keepdim=True))
    return float(torch.linalg.vector_norm(centred)) / math.sqrt(tensor.numel())


def _slow(tensor: Tensor, batch_size: int | None) -> Moments:
    """One tensor in float64, scaled by its largest finite element; counts what is not finite."""
    wide = tensor.to(torch.float64)
    bad = int((~torch.isfinite(wide)).sum())
    if bad:
        return Moments(tensor.numel(), math.nan, math.nan, None, math.inf, bad)
    scale = float(wide.abs().max()) or 1.0
    rms, mean, std = _rows((wide / scale).unsqueeze(0), batch_size, None)[0]
    return Moments(tensor.numel(), rms * scale, mean * scale, None if std is None else std * scale)
