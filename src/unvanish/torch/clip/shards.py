"""Distributed tensors: this process's part, and norms of the whole from the norms of the parts.

Each mesh is reduced by itself, on plain tensors, so that gradients on several meshes and plain ones can be clipped
together.  All processes make the same calls in the same order, whatever their numbers are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shards:
    """How a gradient is cut: mesh dimension -> axis of the tensor."""

    mesh: Any
    axes: tuple[tuple[int, int], ...]

    def along(self, kept: tuple[int, ...]) -> Shards | None:
        """The cuts along these axes; None where there is none."""
        return self._only(tuple(cut for cut in self.axes if cut[1] in kept))

    def across(self, kept: tuple[int, ...]) -> Shards | None:
        """The cuts along all other axes; None where there is none."""
        return self._only(tuple(cut for cut in self.axes if cut[1] not in kept))

    def _only(self, axes: tuple[tuple[int, int], ...]) -> Shards | None:
        return Shards(self.mesh, axes) if axes else None


def local_part(grad: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor | None, Shards | None]:
    """(this process's part, distributed tensor to use instead of ``grad`` or None, how it is cut or None).

    ``like``: a tensor that is cut as ``grad`` has to be.
    """
    if type(grad) is Tensor or not torch.distributed.is_available():
        return grad, None, None
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(grad, DTensor):
        return grad, None, None
    substitute = None
    if isinstance(like, DTensor) and like.placements != grad.placements:
        grad = substitute = grad.redistribute(placements=like.placements)
    if any(placement.is_partial() for placement in grad.placements):
        whole = [Replicate() if placement.is_partial() else placement for placement in grad.placements]
        grad = substitute = grad.redistribute(placements=whole)
    cuts = [(dim, placement) for dim, placement in enumerate(grad.placements) if not placement.is_replicate()]
    axes = tuple((dim, int(placement.dim) % grad.ndim) for dim, placement in cuts)  # type: ignore[attr-defined]
    return grad.to_local(), substitute, Shards(grad.device_mesh, axes) if axes else None


def combine(norms: Tensor, counts: Tensor, shards: Shards) -> tuple[Tensor, Tensor]:
    """Norms and non-finite counts of whole tensors (or units) from those of the parts, float64 and any shape.

    Two small reductions per mesh dimension: the largest part first, so that no square leaves float64.
    """
    import torch.distributed as dist

    device = torch.device(shards.mesh.device_type)
    norms, counts = torch.where(counts > 0, 0.0, norms).to(device), counts.to(device, torch.float64)
    for dim, _ in shards.axes:
        group = shards.mesh.get_group(dim)
        peak = norms.clone()
        dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
        share = torch.where(peak > 0, norms / peak, 0.0)
        sums = torch.stack([share.square(), counts])
        dist.all_reduce(sums, dist.ReduceOp.SUM, group=group)
        norms, counts = peak * sums[0].sqrt(), sums[1]
    return torch.where(counts > 0, torch.nan, norms), counts
