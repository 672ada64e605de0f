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
_Gradients = tuple[Tensor | None, ...]
_Kind = tuple[tuple[int, ...], str]  # shape and dtype
_Shown = list[tuple[int, Vertex]]  # sites in forward order, each with its index among all vertices


class Arrivals:
    """Every so many gradients, those that have come are measured together."""

    def __init__(self, norms: Norms, *, altered: bool) -> None:
        """``altered`` = hooks of the user's on tensors may change gradients on their way from a site to the next."""
        self.passed: dict[int, int] = {}  # site -> slot of the gradient it passes on
        self.zeros: dict[int, float] = {}  # site -> share of zeros in what arrives, where it comes in few digits
        self._norms, self._altered = norms, altered
        self._handles: list[Any] = []

    def hook(self, shown: _Shown, length: int) -> None:
        """Hook the sites among ``length`` vertices, in the order of the backward pass.

        A gradient's slot is the index of where it arrives.  Where a site does nothing but pass on what arrives at the
        one below, a hook behind it tells both: a hook costs more than all that is measured of a small tensor.
        """
        slots = {id(vertex): index for index, vertex in shown}
        self._norms.reserve(length)
        rooms: dict[_Kind, tuple[int, dict[int, _Gradients]]] = {}
        told: set[int] = set()
        waiting = size = 0
        for index, vertex in reversed(shown):
            under = None
            if index not in told:
                kind = vertex.shape, vertex.dtype
                room = rooms.get(kind)
                if room is None:
                    room = rooms[kind] = vertex.size, self._norms.arrivals(kind)
                under = self._feeds_alone(vertex, slots)
                count = 1 if under is None else 2
                waiting, size = waiting + count, size + count * room[0]
                full = waiting >= QUEUE_LENGTH or size >= QUEUE_BYTES
                if full:
                    waiting = size = 0
                if under is None:
                    self._hook_before(index, vertex, room[1], full=full)
                else:
                    told.add(under)
                    self._hook_behind(index, under, vertex, room[1], full=full)
            if under is not None:
                self.passed[index] = under
            elif vertex.data and vertex.kind != "merge":
                self._hook_passed(index, vertex, slots)

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _feeds_alone(self, vertex: Vertex, slots: dict[int, int]) -> int | None:
        """Slot of the site below, if what arrives there is what this one passes on, as it is."""
        if self._altered or len(vertex.data) != 1 or vertex.parameters or vertex.dtype in LOW_PRECISION:
            return None
        position, below = vertex.data[0]
        if position or below.hidden or below.readers != 1 or below.shape != vertex.shape or below.dtype != vertex.dtype:
            return None
        return slots[id(below)]

    def _hook_before(self, index: int, vertex: Vertex, room: dict[int, _Gradients], *, full: bool) -> None:
        """Keep what arrives; without a Python frame of its own, where possible."""
        keep: Callable[[_Gradients], None] = partial(room.__setitem__, index)
        low = vertex.dtype in LOW_PRECISION
        if full or low:
            keep = partial(self._arrived, keep, index if low else None)
        self._handles.append(vertex.node.register_prehook(keep))

    def _hook_behind(self, index: int, under: int, vertex: Vertex, room: dict[int, _Gradients], *, full: bool) -> None:
        """Keep what arrives at a site, and at the one below."""
        flush = self._norms.flush if full else None

        def keep(passed: _Gradients, arrived: _Gradients) -> None:
            room[index], room[under] = arrived, passed
            if flush is not None:
                flush()

        self._handles.append(vertex.node.register_hook(keep))

    def _arrived(self, keep: Callable[[_Gradients], None], zeros: int | None, gradients: _Gradients) -> None:
        """As many gradients wait as are measured together, or zeros are to be counted."""
        keep(gradients)
        self._norms.flush()
        if zeros is not None:
            gradient = next((g for g in gradients if g is not None), None)
            if gradient is not None and gradient.layout == torch.strided:
                self.zeros[zeros] = 1 - float(gradient.count_nonzero()) / max(1, gradient.numel())

    def _hook_passed(self, index: int, vertex: Vertex, slots: dict[int, int]) -> None:
        """The gradient a site passes on is what arrives at the site below, unless others add to it there."""
        below = vertex.data[0][1]
        while below.hidden and below.isometry and below.readers == 1 and below.data:
            below = below.data[0][1]
        if below.readers == 1 and not below.hidden and len(vertex.data) == 1:
            self.passed[index] = slots[id(below)]  # what arrives there
            return
        slot = self.passed[index] = self._norms.slot()
        positions = [position for position, _ in vertex.data]
        self._handles.append(vertex.node.register_hook(partial(self._passed_on, slot, positions)))

    def _passed_on(self, slot: int, positions: list[int], passed: _Gradients, _: object) -> None:
        gradients = [passed[p] for p in positions if p < len(passed)]
        present = [g for g in gradients if g is not None]
        if len(present) == 1:
            self._norms.put(slot, present[0])
        elif present:
            self._norms.put(slot, torch.cat([g.detach().reshape(-1) for g in present]))
