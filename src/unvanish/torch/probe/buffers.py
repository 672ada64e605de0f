"""Memory that is used again and again for tensors that are measured together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

QUEUE_LENGTH = 128
QUEUE_BYTES = 1 << 18  # what waits is still in the cache when it is measured
HELD_BYTES = 1 << 17  # gradients that wait: the memory they are in could be free


class Buffers:
    """Room for tensors measured together, one lot after the other: fresh memory would cost more than the arithmetic."""

    def __init__(self) -> None:
        self._flat: dict[tuple[object, ...], Tensor] = {}
        self._views: dict[tuple[object, ...], Tensor] = {}

    @staticmethod
    def length(like: Tensor) -> int:
        """How many tensors of this kind are measured together."""
        return max(1, min(QUEUE_LENGTH, QUEUE_BYTES // max(1, like.numel() * like.element_size())))

    def stack(self, tensors: list[Tensor]) -> Tensor:
        """The tensors, at most ``length`` of them, side by side; the next call overwrites them."""
        first = tensors[0]
        part = self._room((len(tensors), *first.shape), first)
        torch.stack(tensors, out=part)
        return part

    def like(self, stack: Tensor) -> Tensor:
        """Room for as much as there is in ``stack``."""
        return self._room(stack.shape, stack)

    def _room(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A view of the only piece of memory there is for this dtype."""
        kind = shape, like.dtype, like.device
        room = self._views.get(kind)
        if room is None:
            size = math.prod(shape)
            flat = self._flat.get(kind[1:])
            if flat is None or len(flat) < size:
                self._views.clear()
                flat = self._flat[kind[1:]] = torch.empty(size, dtype=like.dtype, device=like.device)
            room = self._views[kind] = flat[:size].view(shape)
        return room

    def clear(self) -> None:
        """Let go of the memory."""
        self._views.clear()
        self._flat.clear()
