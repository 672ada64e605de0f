"""One read of many gradients: norms, and the smallest and largest entries where bounds for these are asked for.

Compiled, it is one loop over all of them.  In PyTorch it takes several operations for each; where they follow each
other on a piece that is in the cache, the memory is read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unvanish.torch import loops
from unvanish.torch.clip.norms import exact_norm, fast_norms, flat, is_safe, to_host

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
    if kind.is_cpu and kind.dtype in loops.NUMPY and _loops_serve(tensors):
        return _compiled(tensors)
    if bound is None:
        norms = _settled(fast_norms(tensors), tensors)
        return Seen(norms, [0.0] * len(norms), [0.0] * len(norms))
    return _in_pieces(tensors, bound) if kind.is_cpu else _on_device(tensors, bound)


def _loops_serve(tensors: list[Tensor]) -> bool:
    return loops.compiled() and set(map(type, tensors)) == {Tensor} and not torch.compiler.is_compiling()


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


def _on_device(tensors: list[Tensor], bound: float) -> Seen:
    norms = _settled(fast_norms(tensors), tensors)
    large = [at for at, norm in enumerate(norms) if norm >= bound and tensors[at].numel()]
    extremes = to_host([extreme for at in large for extreme in torch.aminmax(tensors[at])])
    seen = Seen(norms, [0.0] * len(norms), [0.0] * len(norms))
    for at, least, most in zip(large, extremes[::2], extremes[1::2], strict=True):
        seen.smallest[at], seen.largest[at] = least, most
    return seen


def _in_pieces(tensors: list[Tensor], bound: float) -> Seen:
    parts: list[list[float]] = [[] for _ in tensors]
    seen = Seen([], [0.0] * len(tensors), [0.0] * len(tensors))
    for pack in _packs(tensors):
        for (at, piece), norm in zip(pack, fast_norms([piece for _, piece in pack]), strict=True):
            parts[at].append(norm)
            if norm >= bound or not is_safe(norm, piece.dtype):
                least, most = _extremes(piece)
                seen.smallest[at], seen.largest[at] = min(seen.smallest[at], least), max(seen.largest[at], most)
    return seen._replace(norms=_settled([math.hypot(*norms) for norms in parts], tensors))


def _packs(tensors: Sequence[Tensor]) -> Iterator[list[tuple[int, Tensor]]]:
    """Pieces, each with the number of its tensor, as many at a time as stay in the cache."""
    pack: list[tuple[int, Tensor]] = []
    filled = 0
    for at, tensor in enumerate(tensors):
        for piece in flat(tensor).split(IN_CACHE):
            if pack and filled + piece.numel() > IN_CACHE:
                yield pack
                pack, filled = [], 0
            pack.append((at, piece))
            filled += piece.numel()
    if pack:
        yield pack


def _extremes(piece: Tensor) -> tuple[float, float]:
    if not piece.numel():
        return 0.0, 0.0
    if piece.dtype in loops.NUMPY and type(piece) is Tensor:  # NumPy is four times faster at it than PyTorch
        array = piece.detach().numpy()
        return float(array.min()), float(array.max())
    least, most = torch.aminmax(piece)
    return float(least), float(most)
