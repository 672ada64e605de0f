"""One read of many gradients: norms, and the smallest and largest entries where bounds for these are asked for.

Compiled, it is one loop over all of them.  Else it takes several operations for each; on the CPU they follow each other
on a piece that is in the cache, so that the memory is read once.  On other devices, and in half precision, those whose
norm does not settle it are read a second time for their extremes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from unvanish.torch import loops
from unvanish.torch.clip.norms import LONG, exact_norm, fast_norms, flat, is_safe, row_norms, to_host

IN_CACHE = 1 << 17  # entries: half a MiB of float32, a quarter of a usual second-level cache


class Seen(NamedTuple):
    """Of each tensor; the extremes are at most and at least 0, and may be left at 0 where they are within the bound."""

    norms: list[float]
    smallest: list[float]
    largest: list[float]


def read(tensors: list[Tensor], bound: float | None) -> Seen:
    """Read tensors of one device and dtype.

    Args:
        tensors: real, strided.
        bound: size up to which entries need no second look; None: extremes are not asked for.

    Returns:
        Norms right to rounding, NaN or infinite where an entry is.
    """
    kind = tensors[0]
    plain = kind.is_cpu and kind.dtype in loops.NUMPY and set(map(type, tensors)) == {Tensor}
    if plain and not torch.compiler.is_compiling() and loops.compiled():
        return _compiled(tensors)
    if bound is None:
        norms = _settled(fast_norms(tensors), tensors)
        return Seen(norms, [0.0] * len(norms), [0.0] * len(norms))
    return _in_pieces(tensors, bound) if plain else _twice(tensors, bound)


def _compiled(tensors: list[Tensor]) -> Seen:
    looks = loops.look([tensor if tensor.is_contiguous() else flat(tensor).contiguous() for tensor in tensors])
    norms = list(map(math.sqrt, looks.squares))
    if tensors[0].dtype == torch.float64:  # squares of float32 are all in the range of float64
        norms = _settled(norms, tensors)
    return Seen(norms, looks.smallest, looks.largest)


def _settled(norms: list[float], tensors: list[Tensor]) -> list[float]:
    """Measured once more where fast arithmetic left its range."""
    pairs = zip(norms, tensors, strict=True)
    return [norm if is_safe(norm, tensor.dtype) else exact_norm(tensor) for norm, tensor in pairs]


def _twice(tensors: list[Tensor], bound: float) -> Seen:
    norms = _settled(fast_norms(tensors), tensors)
    large = [at for at, norm in enumerate(norms) if norm >= bound and tensors[at].numel()]
    extremes = to_host([extreme for at in large for extreme in torch.aminmax(tensors[at])])
    seen = Seen(norms, [0.0] * len(norms), [0.0] * len(norms))
    for at, least, most in zip(large, extremes[::2], extremes[1::2], strict=True):
        seen.smallest[at], seen.largest[at] = least, most
    return seen


def _in_pieces(tensors: list[Tensor], bound: float) -> Seen:
    lines = list(map(flat, tensors))
    seen = Seen([0.0] * len(lines), [0.0] * len(lines), [0.0] * len(lines))
    short: list[int] = []
    norms: list[Tensor] = []
    for pack in _packs([line.numel() for line in lines]):
        if lines[pack[0]].numel() > LONG:
            norm, seen.smallest[pack[0]], seen.largest[pack[0]] = _long(lines[pack[0]])
            seen.norms[pack[0]] = norm
            continue
        together = [lines[at] for at in pack]
        short += pack
        norms += torch._foreach_norm(together)
        for at in pack if _outside(together, bound) else ():
            seen.smallest[at], seen.largest[at] = _extremes(lines[at])
    for at, norm in zip(short, torch.stack(norms).tolist() if norms else (), strict=True):
        seen.norms[at] = norm
    return seen._replace(norms=_settled(seen.norms, tensors))


def _packs(sizes: list[int]) -> Iterator[list[int]]:
    """Numbers of tensors that are looked at together: a long one alone, of short ones as many as stay in the cache."""
    pack: list[int] = []
    filled = 0
    for at, size in enumerate(sizes):
        if size > LONG:
            yield [at]
            continue
        if filled + size > IN_CACHE:
            yield pack
            pack, filled = [], 0
        pack.append(at)
        filled += size
    if pack:
        yield pack


def _long(line: Tensor) -> tuple[float, float, float]:
    """Norm, smallest and largest entry."""
    rows, extremes = [], []
    for piece in line.split(IN_CACHE):
        rows.append(row_norms(piece))
        extremes.append(_extremes(piece))
    norm = float(torch.linalg.vector_norm(torch.cat(rows).double()))
    return norm, min(least for least, _ in extremes), max(most for _, most in extremes)


def _outside(together: list[Tensor], bound: float) -> bool:
    """Whether one may have an entry beyond the bound: copied side by side in the cache, they take two calls."""
    least, most = _extremes(torch.cat(together))
    return not (-bound <= least and most <= bound)


def _extremes(line: Tensor) -> tuple[float, float]:
    array = line.detach().numpy()  # NumPy is four times faster at it than PyTorch
    return (float(array.min()), float(array.max())) if len(array) else (0.0, 0.0)
