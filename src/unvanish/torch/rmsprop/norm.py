"""The factor that clips all gradients to a global norm: they are read once, and never written."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from unvanish.torch.probe.norms import norms
from unvanish.torch.rmsprop import fused
from unvanish.torch.rmsprop.gather import Gathered

_SAFE_SQUARES = (1e-280, 1e300)  # of float64; float32 squares always are


def global_norm(groups: Iterable[Gathered]) -> float | Tensor:
    """L2 norm of all finite entries together; a tensor where reading it would stop a GPU."""
    parts: list[float] = []
    on_device: list[Tensor] = []
    for group in groups:
        for batch in group.batches.values():
            parts += _compiled_norms(batch.g)
        for g in group.gradients():
            if g.device.type != "cpu":
                on_device.append(torch.linalg.vector_norm(_finite(g), dtype=torch.float64))
            elif g.numel():
                parts += _norms([g])
    if not on_device:
        return math.hypot(*parts)
    device = on_device[0].device
    together = [part.to(device) for part in on_device] + [torch.tensor(math.hypot(*parts), device=device)]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(together).double())
    return norm


def _compiled_norms(gradients: list[Tensor]) -> list[float]:
    low, high = _SAFE_SQUARES
    sums = fused.square_sums(gradients)
    return [math.sqrt(x) if low < x < high else _norms([g])[0] for x, g in zip(sums, gradients, strict=True) if x]


def _norms(gradients: list[Tensor]) -> list[float]:
    """Where a norm is not finite, without the entries that are not."""
    measured = norms(gradients)
    for i, norm in enumerate(measured):
        if not math.isfinite(norm):
            measured[i] = norms([_finite(gradients[i])])[0]
    return measured


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
