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

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from unvanish.torch.probe.activations import DERIVATIVES, UnitQueue, Units
from unvanish.torch.probe.arrivals import LOW_PRECISION, Arrivals
from unvanish.torch.probe.collector import without_collector
from unvanish.torch.probe.graph import Graph, Vertex, read_graph
from unvanish.torch.probe.handmade import Handmade, become_sites, find_handmade
from unvanish.torch.probe.naming import Names, name_vertices
from unvanish.torch.probe.norms import Norms
from unvanish.torch.probe.ops import VIEWS
from unvanish.torch.probe.recurrent import TimeWatch
from unvanish.torch.probe.saved import kept_output
from unvanish.torch.probe.sites import Measured, describe, merge_units, normalized_count
from unvanish.torch.probe.softmax import one_hot_share, softmax_axis
from unvanish.torch.probe.unit_axis import unit_axis
from unvanish.torch.probe.watcher import Watcher
from unvanish.types import Moments, Site

__all__ = ["LOW_PRECISION", "Probe", "merge_units"]

_RESHAPES = ("ViewBackward0", "ReshapeAliasBackward0", "SqueezeBackward0")


class Probe:
    """Watches one forward and backward pass."""

    def __init__(
        self, names: Names, batch_size: int | None, inputs: tuple[Tensor, ...] = (), scopes: Watcher | None = None
    ) -> None:
        """Prepare to watch the modules in ``names``.

        Args:
            names: modules and parameters as the user knows them.
            batch_size: number of samples, to find the axis over which samples differ.
            inputs: the batch's tensors; those that require gradients are data, not parameters.
            scopes: what watched the forward pass, if others read from it, too.
        """
        self.scopes = Watcher(names, batch_size) if scopes is None else scopes
        self._alone = scopes is None
        self._names = names
        self.graph: Graph | None = None
        self._inputs = {id(tensor) for tensor in inputs}
        self._norms = Norms()
        self._counts: dict[int, int | None] = {}
        self._one_hot: dict[int, float | None] = {}
        self._handmade: list[Handmade] = []
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

    def connected(self, loss: Tensor) -> bool:
        """Does backward from ``loss`` lead anywhere?

        ``requires_grad_()`` on the finished loss connects it with nothing: it is a leaf, or reshaped from one that is
        nobody's weight.
        """
        source = loss.grad_fn
        if source is None or len(source.next_functions) != 1 or source.name() not in _RESHAPES:
            return source is not None
        below = source.next_functions[0][0]
        variable = getattr(below, "variable", None)
        return variable is None or isinstance(variable, nn.Parameter) or id(variable) in self._names.parameters

    def attach(self, loss: Tensor) -> Graph:
        """Read the graph of ``loss`` and hook its nodes; call ``loss.backward()`` next."""
        with torch.no_grad(), without_collector():
            self.graph = read_graph(loss, self._inputs | self.scopes.times.leaves)
            self._mark_parametrizations(self.graph.vertices)
            self._units = UnitQueue(self.scopes.moments)
            for vertex in self.graph.vertices:
                index = vertex.index
                if vertex.hidden:
                    continue
                if vertex.kind == "activation":
                    self._look_at_activation(vertex)
                elif vertex.kind == "normalization":
                    self._counts[index] = normalized_count(vertex)
                elif vertex.kind == "softmax":
                    self._one_hot[index] = one_hot_share(vertex)
                    self._counts[index] = None if (axis := softmax_axis(vertex)) is None else vertex.shape[axis]
            self._units.finish()  # before the backward pass: what waits would stay alive through it
            self._forward = self.scopes.moments.take([vertex.number for vertex in self.graph.vertices])
            _look_through_views(self.graph.vertices, self._forward)
            if self._alone:
                self.scopes.moments.clear()
            self._arrivals = Arrivals(self._norms)
            self._arrivals.hook(self.graph.vertices)
            self._handmade = find_handmade(self.graph)
            for one in self._handmade:
                self._hooks += one.hook(self._norms)
        return self.graph

    def _mark_parametrizations(self, vertices: list[Vertex]) -> None:
        """What computes a weight reads no data, though it may read buffers, which look like the batch."""
        calls = [call for call in self.scopes.calls if isinstance(call.module, ParametrizationList)]
        for vertex in vertices if calls else ():
            inside = any(call.start <= vertex.number < (call.end or 0) for call in calls)
            viewed = vertex.isometry and all(below.constant for below in vertex.below)
            vertex.constant = vertex.constant or inside or viewed

    def _look_at_activation(self, vertex: Vertex) -> None:
        """Queue its derivative, and what it put out where the forward pass has not measured that."""
        shape = vertex.shape
        channel = len(shape) > 2 and unit_axis(vertex) == 1
        if vertex.stem in DERIVATIVES and shape and 0 not in shape:
            output = kept_output(vertex)
            if output is not None:
                number = vertex.number if self.scopes.claim(vertex.number) else -1
                self._units.add_output(vertex.index, number, vertex.op, output, channel)
                return
        self._units.add(vertex.index, vertex, channel)
        self.scopes.observe_saved(vertex)

    def sites(self) -> tuple[tuple[Site, ...], dict[int, Units]]:
        """The sites in forward order, and which units of the activations among them lived (by order)."""
        assert self.graph is not None, "attach comes first"
        self._arrivals.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        with torch.no_grad(), without_collector():
            return self._describe(self.graph)

    def _describe(self, graph: Graph) -> tuple[tuple[Site, ...], dict[int, Units]]:
        units = self._units.finish()
        handmade = become_sites(graph, self._handmade)
        units.update((index, one.units) for index, one in handmade.items() if one.units is not None)
        named = name_vertices(graph, self.scopes, self._names)
        if self._alone:
            self.scopes.calls.clear()
        passed = self._arrivals.passed
        for index, one in handmade.items():
            passed[index] = one.slot
        slopes = {index: one.log_slope for index, one in handmade.items()}
        shown = [vertex.index for vertex in graph.vertices if not vertex.hidden]
        zeros, bad, logs = self._arrivals.zeros, self._norms.nonfinite, self._norms.logs()
        seen = Measured(self._forward, logs, passed, units, zeros, bad, self._counts, self._one_hot, slopes)
        sites = describe(graph, named, seen)
        return sites, {site.order: units[index] for site, index in zip(sites, shown, strict=True) if index in units}


def _look_through_views(vertices: list[Vertex], forward: list[Moments | None]) -> None:
    """What a view shows is what it is a view of: a linear layer on sequences puts one out."""
    for vertex in reversed(vertices):
        if vertex.hidden and forward[vertex.index] is not None and vertex.stem in VIEWS and vertex.below:
            source = vertex.below[0].index
            forward[source] = forward[source] or forward[vertex.index]
