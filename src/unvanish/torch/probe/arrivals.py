"""Hooks on autograd nodes: the gradient that arrives at a site, and the one it passes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.probe.buffers import HELD_BYTES, QUEUE_LENGTH
from unvanish.torch.probe.graph import Form, Vertex
from unvanish.torch.probe.norms import Norms

LOW_PRECISION = ("float16", "bfloat16")
_node_now = torch._C._current_autograd_node


class Arrivals:
    """Every so many gradients, those that have come are measured together."""

    def __init__(self, norms: Norms) -> None:
        self.passed: list[int | None] = []  # by index of the vertex: slot of the gradient it passes on
        self.zeros: dict[int, float] = {}  # site -> share of zeros in what arrives, where it comes in few digits
        self._norms = norms
        self._vertices: list[Vertex] = []
        self._computed = False  # is any weight computed of parameters?
        self._next = -1  # index of the vertex, or of one above it, at whose node something should arrive next
        self._places: dict[Any, int] | None = None  # node -> index of its vertex, once that went wrong
        self._held = 0  # bytes of gradients that wait
        self._shared: dict[Form, tuple[Tensor, dict[int, Any]]] = {}
        self._handles: list[Any] = []

    def hook(self, vertices: list[Vertex]) -> None:
        """Hook those that are sites; the slot of what arrives at one is its index."""
        self._norms.reserve(len(vertices))
        self._vertices, self._next = vertices, len(vertices) - 1
        self.passed = [None] * len(vertices)
        self._computed = any(vertex.constant for vertex in vertices)
        for vertex in vertices:
            if vertex.hidden:
                continue
            if vertex.several:
                self._handles.append(vertex.node.register_prehook(partial(self._arrived_together, vertex.index)))
            else:
                vertex.node._register_hook_dict(self._hooks(vertex))
            if vertex.below and vertex.kind != "merge":
                self._hook_passed(vertex)

    def remove(self) -> None:
        """Take all hooks away."""
        for _, hooks in self._shared.values():
            hooks.clear()
        self._vertices = []
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hooks(self, like: Vertex) -> Tensor:
        """A tensor whose hooks are called with what arrives at nodes of this form, after those of the user's.

        As every tensor's, they lie in a dictionary; all nodes of a form are given the same.  A hook of a node's own
        takes a kilobyte and 4 us, which is more than all that is measured of a small tensor.
        """
        shared = self._shared.get(like.form)
        if shared is None:
            carrier = torch.empty(0)
            hooks = {0: self._keeper(like.form, like.size)}
            carrier._backward_hooks = hooks  # type: ignore[assignment]
            shared = self._shared[like.form] = carrier, hooks
        return shared[0]

    def _keeper(self, form: Form, size: int) -> Callable[[Tensor | None], None]:
        """The hook of all nodes of a form: keeps what arrives."""
        vertices, room, low = self._vertices, self._norms.arrivals(form), form[1] in LOW_PRECISION
        share = max(size, HELD_BYTES // QUEUE_LENGTH)

        def keep(gradient: Tensor | None) -> None:
            node, slot = _node_now(), self._next
            if slot < 0 or vertices[slot].node is not node:
                slot = self._find(node)
            self._next = slot - 1
            room[slot] = gradient
            if low:
                self._count_zeros(slot, gradient)
            self._held = held = self._held + share
            if held >= HELD_BYTES:
                self._held = 0
                self._norms.flush()

        return keep

    def _find(self, node: Any) -> int:
        """Index of the vertex of a node that is not the expected one.

        As a rule it is one further down: a backward pass goes by the numbers of the nodes, from the highest.  When one
        comes out of this order, as from several devices, it and all after it are looked up.
        """
        if self._places is None:
            for index in range(self._next - 1, -1, -1):
                if self._vertices[index].node is node:
                    return index
            self._places = {vertex.node: vertex.index for vertex in self._vertices}
        return self._places[node]

    def _arrived_together(self, slot: int, gradients: tuple[Tensor | None, ...]) -> None:
        """The gradients of all outputs that have one, at a node that has several."""
        present = self._put(slot, gradients)
        if present and str(present[0].dtype).removeprefix("torch.") in LOW_PRECISION:
            self._count_zeros(slot, present[0])

    def _put(self, slot: int, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Measure several as one, and return those that are there."""
        present = [g for g in gradients if g is not None]
        if present:
            one = present[0] if len(present) == 1 else torch.cat([g.detach().reshape(-1) for g in present])
            self._norms.put(slot, one)
        return present

    def _count_zeros(self, slot: int, gradient: Tensor | None) -> None:
        if gradient is not None and gradient.layout == torch.strided:
            self.zeros[slot] = 1 - float(gradient.count_nonzero()) / max(1, gradient.numel())

    def _hook_passed(self, vertex: Vertex) -> None:
        """The gradient a site passes on is what arrives at the site below, unless others add to it there.

        What it passes on to a weight that was computed of parameters (a low-rank product, a norm of it) is not counted.
        """
        positions = self._data_positions(vertex)
        below = vertex.below[0]
        while below.hidden and below.isometry and below.readers == 1 and below.below and _keeps_digits(below):
            below = below.below[0]
        if below.readers == 1 and not below.hidden and len(vertex.below) == len(positions) == 1:
            self.passed[vertex.index] = below.index  # the slot of what arrives there
        elif positions:
            slot = self.passed[vertex.index] = self._norms.slot()
            self._handles.append(vertex.node.register_hook(partial(self._passed_on, slot, positions)))

    def _data_positions(self, vertex: Vertex) -> tuple[int, ...]:
        """Where it reads what depends on the batch; everywhere, if nothing it reads does."""
        if vertex.constant or not self._computed:
            return vertex.positions
        pairs = zip(vertex.below, vertex.positions, strict=True)
        return tuple(position for below, position in pairs if not below.constant)

    def _passed_on(self, slot: int, positions: tuple[int, ...], passed: tuple[Tensor | None, ...], _: object) -> None:
        self._put(slot, [passed[p] for p in positions if p < len(passed)])


def _keeps_digits(vertex: Vertex) -> bool:
    """Is it no cast, on whose other side a gradient may be rounded to zero?"""
    return vertex.dtype == vertex.below[0].dtype
