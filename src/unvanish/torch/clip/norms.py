"""L2 norms of many tensors in one read, right wherever their entries are.

float32 squares leave the range below 1e-22 and above 1e19, so a norm outside the safe range is measured again in
float64: in pieces that stay in the cache, which costs six float32 norms; torch's own way costs thirty.  And a running
float32 sum loses digits with its length (torch's norm of 5e7 equal numbers is 3 % wrong), so long tensors are summed in
rows whose norms are added in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unvanish.torch.probe.norms import scaled_norm

_SAFE = {torch.float64: (1e-140, 1e150)}  # a norm in between is right to rounding; scaled_norm takes the others
_SAFE_SINGLE = (1e-15, 1e18)
LONG = 1 << 14  # entries; a float32 norm of fewer is right to 1.6e-5 for equal numbers, to 3e-6 for random ones
_ROW = 1 << 10
_PIECE = 1 << 16  # entries that are converted at a time, in cache
_NO_DOUBLE = ("mps",)  # devices without float64


def is_safe(norm: float, dtype: torch.dtype) -> bool:
    """Whether a norm found in fast arithmetic is right; neither 0 nor NaN nor Inf is."""
    low, high = _SAFE.get(dtype, _SAFE_SINGLE)
    return low < norm < high


def fast_norms(tensors: list[Tensor]) -> list[float]:
    """Norms in float32 (float64 for float64) of tensors of one device and dtype."""
    kind = tensors[0]
    wide = kind.dtype if kind.dtype == torch.float64 else torch.float32
    if kind.device.type != "cpu":  # sums in a tree there, and converts on the way
        return _floats(list(torch._foreach_norm(tensors, 2, dtype=wide)))
    if kind.dtype != wide:  # torch converts half precision entry by entry, four times slower
        return _floats([_in_pieces(tensor, wide) for tensor in tensors])
    lines = [tensor if tensor.is_contiguous() else flat(tensor) for tensor in tensors]
    short = [line for line in lines if line.numel() <= LONG]
    rest = iter(torch._foreach_norm(short) if short else ())
    return _floats([next(rest) if line.numel() <= LONG else _in_rows(line) for line in lines])


def exact_norm(tensor: Tensor) -> float:
    """Norm in float64; inf and NaN only where an entry is."""
    tensor = tensor.cpu() if tensor.device.type in _NO_DOUBLE else tensor
    if tensor.dtype == torch.float64:
        return scaled_norm(tensor)
    return float(_in_pieces(tensor, torch.float64))


def count_nonfinite(tensor: Tensor) -> int:
    """How many entries are NaN or Inf."""
    return tensor.numel() - int(torch.isfinite(tensor).sum())


def double(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return tensor.cpu().double() if tensor.device.type in _NO_DOUBLE else tensor.double()


def flat(tensor: Tensor) -> Tensor:
    """All entries in one row, in memory order where there are no gaps: no copy then."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def to_host(scalars: list[Tensor]) -> list[float]:
    """Numbers from any devices, with one transfer for each device."""
    places: dict[torch.device, list[int]] = {}
    for at, scalar in enumerate(scalars):
        places.setdefault(scalar.device, []).append(at)
    values = [0.0] * len(scalars)
    for there in places.values():
        for at, value in zip(there, torch.stack([scalars[at] for at in there]).tolist(), strict=True):
            values[at] = value
    return values


def _floats(scalars: list[Tensor]) -> list[float]:
    values: list[float] = torch.stack(scalars).tolist()
    return values


def row_norms(line: Tensor) -> Tensor:
    """Of rows that are short enough to lose no digits; their norm, in float64, is that of the line."""
    whole = line.numel() // _ROW * _ROW
    rows: Tensor = torch.linalg.vector_norm(line[:whole].view(-1, _ROW), dim=1)
    if whole == line.numel():
        return rows
    return torch.cat([rows, torch.linalg.vector_norm(line[whole:]).view(1)])


def _in_rows(tensor: Tensor) -> Tensor:
    line = flat(tensor)
    norm: Tensor = torch.linalg.vector_norm(row_norms(line).double())
    return norm.to(line.dtype)


def _in_pieces(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    line = flat(tensor)
    if line.device.type != "cpu" or line.numel() <= _ROW:
        norm: Tensor = torch.linalg.vector_norm(line, dtype=dtype)
        return norm
    room = torch.empty(min(_PIECE, line.numel()), dtype=dtype)
    norms = []
    for piece in line.split(_PIECE):
        converted = room[: piece.numel()].copy_(piece)
        norms.append(_in_rows(converted))
    together: Tensor = torch.linalg.vector_norm(torch.stack(norms).double())
    return together.to(dtype)
