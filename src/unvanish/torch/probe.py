"""One backward pass of the user's loss, watched: autograd nodes in, sites of plain numbers out.

    probe = Probe(names, batch_size)
    with probe.watching():
        loss = objective(model, batch)
    probe.attach(loss)
    loss.backward()
    sites = probe.sites()

``attach`` hooks every data-carrying node once; the backward pass itself is the user's own and its numbers do not
change.  Nothing is kept alive after ``sites``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.activations import UnitQueue, Units
from unvanish.torch.graph import Graph, Vertex, read_graph
from unvanish.torch.naming import Namer, Names
from unvanish.torch.norms import Norms
from unvanish.torch.recurrent import TimeWatch
from unvanish.torch.sites import Measured, describe, merge_units, normalized_count
from unvanish.torch.watcher import Watcher
from unvanish.types import Site

__all__ = ["LOW_PRECISION", "Probe", "merge_units", "release"]

LOW_PRECISION = ("float16", "bfloat16")


class Probe:
    """Watches one forward and backward pass."""

    def __init__(self, names: Names, batch_size: int | None, inputs: tuple[Tensor, ...] = ()) -> None:
        """Prepare to watch the modules in ``names``.

        Args:
            names: modules and parameters as the user knows them.
            batch_size: number of samples, to find the axis over which samples differ.
            inputs: the batch's tensors; those that require gradients are data, not parameters.
        """
        self.scopes = Watcher(names, batch_size)
        self._names = names
        self.graph: Graph | None = None
        self._inputs = {id(tensor) for tensor in inputs}
        self._norms = Norms()
        self._units = UnitQueue()
        self._grad_out: dict[int, int] = {}
        self._grad_in: dict[int, int] = {}
        self._zeros: dict[int, float] = {}
        self._counts: dict[int, int | None] = {}
        self._hooks: list[Any] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the forward pass in this block."""
        with self.scopes.recording(), without_collector():
            yield

    @property
    def times(self) -> TimeWatch:
        """The gradient over time, measured at the recurrent modules."""
        return self.scopes.times

    def attach(self, loss: Tensor) -> Graph:
        """Read the graph of ``loss`` and hook its nodes; call ``loss.backward()`` next."""
        with without_collector():
            self.graph = read_graph(loss, self._inputs | self.scopes.times.leaves)
        slots: dict[int, int] = {}  # id of a vertex -> slot of the gradient that arrives at it
        with torch.no_grad(), without_collector():
            for index, vertex in enumerate(self.graph.vertices):
                if vertex.hidden:
                    continue
                if vertex.kind == "activation":
                    self._units.add(index, vertex, _after_convolution(vertex))
                    self.scopes.observe_saved(vertex)
                elif vertex.kind == "normalization":
                    self._counts[index] = normalized_count(vertex)
                slots[id(vertex)] = self._hook_output(index, vertex)
                self._hook_input(index, vertex, slots)
        return self.graph

    def _hook_output(self, index: int, vertex: Vertex) -> int:
        """Measure the gradient that arrives at a site."""
        slot = self._grad_out[index] = self._norms.slot()
        low = index if vertex.dtype in LOW_PRECISION else None
        self._hooks.append(vertex.node.register_prehook(partial(self._arrived, slot, low)))
        return slot

    def _arrived(self, slot: int, low: int | None, gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[0]
        if gradient is None:
            gradient = next((g for g in gradients if g is not None), None)
            if gradient is None:
                return
        self._norms.put(slot, gradient)
        if low is not None and gradient.layout == torch.strided:
            self._zeros[low] = 1 - float(gradient.count_nonzero()) / max(1, gradient.numel())

    def _hook_input(self, index: int, vertex: Vertex, slots: dict[int, int]) -> None:
        """The gradient a site passes on is what arrives at the site below, unless others add to it there."""
        if vertex.kind == "merge" or not vertex.data:
            return
        below = vertex.data[0][1]
        while below.hidden and below.isometry and below.readers == 1 and below.data:
            below = below.data[0][1]
        if below.readers == 1 and not below.hidden and len(vertex.data) == 1:
            self._grad_in[index] = slots[id(below)]
            return
        slot = self._grad_in[index] = self._norms.slot()
        self._hooks.append(vertex.node.register_hook(partial(self._passed, slot, [p for p, _ in vertex.data])))

    def _passed(self, slot: int, positions: list[int], passed: tuple[Tensor | None, ...], _: object) -> None:
        gradients = [passed[p] for p in positions if p < len(passed)]
        present = [g for g in gradients if g is not None]
        if len(present) == 1:
            self._norms.put(slot, present[0])
        elif present:
            self._norms.put(slot, torch.cat([g.detach().reshape(-1) for g in present]))

    def sites(self) -> tuple[tuple[Site, ...], dict[int, Units]]:
        """The sites in forward order, and which units of the activations among them lived (by order)."""
        assert self.graph is not None, "attach comes first"
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        with without_collector():
            found = self._describe(self.graph)
        release(self.graph)
        return found

    def _describe(self, graph: Graph) -> tuple[tuple[Site, ...], dict[int, Units]]:
        units = self._units.finish()
        owners = self.scopes.owners([vertex.number for vertex in graph.vertices])
        names = Namer(self.scopes, self._names).names(graph, owners)
        log_out, log_in = self._norms.logs(self._grad_out), self._norms.logs(self._grad_in)
        forward = self.scopes.moments.finish()
        sites = describe(graph, names, Measured(forward, log_out, log_in, units, self._zeros, self._counts))
        shown = (index for index, vertex in enumerate(graph.vertices) if not vertex.hidden)
        return sites, {order: units[index] for order, index in enumerate(shown) if index in units}


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the cycle collector: it would look through the many small objects of a probe again and again."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _after_convolution(vertex: Vertex) -> bool:
    """Is the nearest op with weights below this one a convolution, so that axis 1 holds the units?"""
    while vertex.data:
        vertex = vertex.data[0][1]
        if vertex.kind in ("linear", "convolution", "recurrent", "attention", "embedding"):
            return vertex.kind == "convolution"
    return False


def release(graph: Graph) -> None:
    """Let go of the autograd nodes, which hold the whole graph and its tensors alive."""
    for vertex in graph.vertices:
        vertex.node = None
