"""Memory that is used again and again for tensors that are measured together."""

from __future__ import annotations

import torch
from torch import Tensor

QUEUE_LENGTH = 128
QUEUE_BYTES = 1 << 18  # what waits is still in the cache when it is measured


class Buffers:
    """Room for tensors of one shape and dtype, reused: fresh memory would cost more than the arithmetic."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[object, ...], Tensor] = {}

    @staticmethod
    def length(like: Tensor) -> int:
        """How many tensors of this kind are measured together."""
        return max(1, min(QUEUE_LENGTH, QUEUE_BYTES // max(1, like.numel() * like.element_size())))

    def stack(self, tensors: list[Tensor]) -> Tensor:
        """The tensors, at most ``length`` of them, side by side; the next call overwrites them."""
        if len(tensors) == 1:
            return tensors[0].clone().unsqueeze(0)
        part = self._room(tensors[0], len(tensors))
        torch.stack(tensors, out=part)
        return part

    def like(self, stack: Tensor) -> Tensor:
        """Room for as much as there is in ``stack``."""
        return self._room(stack[0], len(stack))

    def _room(self, first: Tensor, length: int) -> Tensor:
        kind = (first.shape, first.dtype, first.device)
        room = self._rooms.get(kind)
        if room is None or len(room) < length:
            room = self._rooms[kind] = torch.empty((length, *first.shape), dtype=first.dtype, device=first.device)
        return room[:length]

    def clear(self) -> None:
        """Let go of the memory."""
        self._rooms.clear()
