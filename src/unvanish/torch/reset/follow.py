"""Follow units through views, pools and the like: the op itself is run on a map that says whose each entry is."""

from __future__ import annotations

import torch
from torch import Tensor

from unvanish.torch.reset.units import NOBODY, axis_of
from unvanish.torch.wiring import Op

_CASTS = frozenset({"to", "type", "float", "double", "half", "bfloat16", "detach", "contiguous", "clone"})
_ELEMENTWISE = frozenset({"activation", "softmax", "dropout", "normalization", "scale"})


def carried(op: Op, owners: Tensor, shape: torch.Size | None) -> Tensor | str:
    """The map of owners behind an op, or why the units cannot be followed.

    Args:
        op: a call with one input.
        owners: the number of the unit (from 1) of each entry of its input.
        shape: of what the call returned, None where that was not one tensor.
    """
    if shape is None:
        return f"`{op.name}` returns them in several tensors"
    if op.kind in _ELEMENTWISE or op.name in _CASTS:
        return owners if shape == owners.shape else f"`{op.name}` changes their shape"
    if op.kind == "pool":
        return _pooled(op, owners, shape)
    try:
        return op.apply(owners)
    except (RuntimeError, TypeError, AssertionError) as error:  # an op that does not take whole numbers
        return f"they cannot be followed through `{op.name}` ({type(error).__name__})"


def over_units(op: Op, owners: Tensor, units: int) -> bool:
    """Does this softmax make units compete with each other, and not the places or times of each?"""
    dim, place = op.arguments.get("dim"), axis_of(owners, units)
    if op.name not in ("softmax", "softmin") or not isinstance(dim, int) or place is None:
        return False
    return dim == place.axis or dim - owners.ndim == place.axis


def _pooled(op: Op, owners: Tensor, shape: torch.Size) -> Tensor | str:
    """Pooling over positions leaves each unit in its place; pooling over units mixes them."""
    place = axis_of(owners, int(owners.max()))
    if place is None:
        return f"they lie along several axes where `{op.name}` pools"
    if len(shape) == owners.ndim and shape[place.axis] == owners.shape[place.axis]:
        expanded = [1] * len(shape)
        expanded[place.axis] = -1
        return place.owners.to(owners.dtype).reshape(expanded).expand(shape)
    dims = op.arguments.get("dim")
    if dims is None:
        return f"`{op.name}` takes them together"
    keep = bool(op.arguments.get("keepdim", False))
    most = owners.amax(dim=dims, keepdim=keep)
    least = torch.where(owners == NOBODY, owners.max() + 1, owners).amin(dim=dims, keepdim=keep)
    if most.shape != shape or bool(((most != least) & (most != NOBODY)).any()):
        return f"`{op.name}` takes them together"
    return most
