"""The factor that clips all gradients to a global norm: they are read once, and never written."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from unvanish.torch import loops
from unvanish.torch.probe.norms import norms
from unvanish.torch.rmsprop.gather import Batch, Gathered
from unvanish.torch.rmsprop.plan import G

_SAFE_SQUARES = (1e-280, 1e300)  # of float64; float32 squares always are
_PIECE = 1 << 14  # a float32 norm of more loses digits: torch's norm of 5e7 equal numbers is 3 % too small


def global_norm(groups: Iterable[Gathered]) -> float | Tensor:
    """L2 norm of all finite entries together; a tensor where reading it would stop a GPU."""
    parts: list[float] = []
    on_device: list[Tensor] = []
    here: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for group in groups:
        for batch in group.batches:
            parts += _compiled_norms(batch)
        for g in group.gradients():
            if g.is_cpu:
                here[g.dtype].append(g)
            else:
                on_device.append(torch.linalg.vector_norm(_finite(g), dtype=torch.float64))
    for gradients in here.values():
        parts += _norms(gradients)
    if not on_device:
        return math.hypot(*parts)
    device = on_device[0].device
    together = [part.to(device) for part in on_device] + [torch.tensor(math.hypot(*parts), device=device)]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(together).double())
    return norm


def _compiled_norms(batch: Batch) -> list[float]:
    low, high = _SAFE_SQUARES
    sums = loops.square_sums(batch.plan.table[G], batch.plan.ends, batch.plan.dtype)
    parts = [math.sqrt(x) for x in sums if low < x < high]
    return parts + _norms([g for x, g in zip(sums, batch.gradients, strict=True) if x and not low < x < high])


def _norms(gradients: list[Tensor]) -> list[float]:
    """Of the finite entries of gradients of one dtype, piece by piece."""
    pieces = [piece for g in gradients if g.numel() for piece in _pieces(g)]
    measured = norms(pieces) if pieces else []
    for i, norm in enumerate(measured):
        if not math.isfinite(norm):
            measured[i] = norms([_finite(pieces[i])])[0]
    return measured


def _pieces(g: Tensor) -> tuple[Tensor, ...]:
    return g.view(-1).split(_PIECE) if g.is_contiguous() and g.numel() > _PIECE else (g,)


def _finite(g: Tensor) -> Tensor:
    return torch.nan_to_num(g, 0.0, 0.0, 0.0)


def clip_factor(norm: float | Tensor, clip: float | None) -> float | Tensor:
    """What gradients of this norm are multiplied by; 1 where they are short enough or all zero."""
    if clip is None:
        return 1.0
    if isinstance(norm, Tensor):
        factor: Tensor = clip / norm  # Inf where the norm is 0
        return factor.clamp(max=1.0)
    return 1.0 if norm <= clip else clip / norm
