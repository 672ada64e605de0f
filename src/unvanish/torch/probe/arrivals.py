"""Hooks on autograd nodes: the gradient that arrives at a site, and the one it passes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.probe.buffers import QUEUE_BYTES, QUEUE_LENGTH
from unvanish.torch.probe.graph import Vertex
from unvanish.torch.probe.norms import Norms

LOW_PRECISION = ("float16", "bfloat16")
_Kind = tuple[tuple[int, ...], str]  # shape and dtype
_node_now = torch._C._current_autograd_node


class Arrivals:
    """Every so many gradients, those that have come are measured together."""

    def __init__(self, norms: Norms) -> None:
        self.passed: list[int | None] = []  # by index of the vertex: slot of the gradient it passes on
        self.zeros: dict[int, float] = {}  # site -> share of zeros in what arrives, where it comes in few digits
        self._norms = norms
        self._slots: dict[Any, int] = {}  # node -> index of its site, the slot of what arrives there
        self._waiting = 0  # bytes
        self._shared: dict[_Kind, tuple[Tensor, dict[int, Any]]] = {}
        self._handles: list[Any] = []

    def hook(self, vertices: list[Vertex]) -> None:
        """Hook those that are sites; the slot of what arrives at one is its index."""
        self._norms.reserve(len(vertices))
        self.passed = [None] * len(vertices)
        for vertex in vertices:
            if vertex.hidden:
                continue
            if vertex.several:
                self._handles.append(vertex.node.register_prehook(partial(self._arrived_first, vertex.index)))
            else:
                self._slots[vertex.node] = vertex.index
                vertex.node._register_hook_dict(self._hooks(vertex))
            if vertex.below and vertex.kind != "merge":
                self._hook_passed(vertex)

    def remove(self) -> None:
        """Take all hooks away."""
        for _, hooks in self._shared.values():
            hooks.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hooks(self, like: Vertex) -> Tensor:
        """A tensor whose hooks are called with what arrives at nodes of this kind, after those of the user's.

        As every tensor's, they lie in a dictionary; all nodes of a kind are given the same.  A hook of a node's own
        takes a kilobyte and 4 us, which is more than all that is measured of a small tensor.
        """
        kind = like.shape, like.dtype
        shared = self._shared.get(kind)
        if shared is None:
            carrier = torch.empty(0)
            hooks = {0: self._keeper(kind, like.size)}
            carrier._backward_hooks = hooks  # type: ignore[assignment]
            shared = self._shared[kind] = carrier, hooks
        return shared[0]

    def _keeper(self, kind: _Kind, size: int) -> Callable[[Tensor | None], None]:
        """The hook of all nodes of a kind: keeps what arrives."""
        slots, room = self._slots, self._norms.arrivals(kind)
        share = max(size, QUEUE_BYTES // QUEUE_LENGTH)
        low = kind[1] in LOW_PRECISION

        def keep(gradient: Tensor | None) -> None:
            slot = slots[_node_now()]
            room[slot] = gradient
            self._waiting += share
            if low:
                self._count_zeros(slot, gradient)
            if self._waiting >= QUEUE_BYTES:
                self._waiting = 0
                self._norms.flush()

        return keep

    def _arrived_first(self, slot: int, gradients: tuple[Tensor | None, ...]) -> None:
        """The gradient of the first output that has one, at a node that has several."""
        gradient = next((g for g in gradients if g is not None), None)
        if gradient is not None:
            self._norms.put(slot, gradient)
            if str(gradient.dtype).removeprefix("torch.") in LOW_PRECISION:
                self._count_zeros(slot, gradient)

    def _count_zeros(self, slot: int, gradient: Tensor | None) -> None:
        if gradient is not None and gradient.layout == torch.strided:
            self.zeros[slot] = 1 - float(gradient.count_nonzero()) / max(1, gradient.numel())

    def _hook_passed(self, vertex: Vertex) -> None:
        """The gradient a site passes on is what arrives at the site below, unless others add to it there."""
        below = vertex.below[0]
        while below.hidden and below.isometry and below.readers == 1 and below.below:
            below = below.below[0]
        if below.readers == 1 and not below.hidden and len(vertex.below) == 1:
            self.passed[vertex.index] = below.index  # the slot of what arrives there
            return
        slot = self.passed[vertex.index] = self._norms.slot()
        self._handles.append(vertex.node.register_hook(partial(self._passed_on, slot, vertex.positions)))

    def _passed_on(self, slot: int, positions: tuple[int, ...], passed: tuple[Tensor | None, ...], _: object) -> None:
        gradients = [passed[p] for p in positions if p < len(passed)]
        present = [g for g in gradients if g is not None]
        if len(present) == 1:
            self._norms.put(slot, present[0])
        elif present:
            self._norms.put(slot, torch.cat([g.detach().reshape(-1) for g in present]))
