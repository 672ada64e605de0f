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

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unvanish import theory
from unvanish.torch.activations import UnitQueue, Units, readable
from unvanish.torch.graph import Graph, Vertex, read_graph
from unvanish.torch.moments import MomentQueue
from unvanish.torch.naming import Namer, Names
from unvanish.torch.norms import Norms
from unvanish.torch.recurrent import TimeWatch
from unvanish.torch.scopes import Scopes, tensors_in
from unvanish.types import Site

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
        self.scopes = _Watcher(names, batch_size)
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
        with self.scopes.recording():
            yield

    @property
    def times(self) -> TimeWatch:
        """The gradient over time, measured at the recurrent modules."""
        return self.scopes.times

    def attach(self, loss: Tensor) -> Graph:
        """Read the graph of ``loss`` and hook its nodes; call ``loss.backward()`` next."""
        self.graph = read_graph(loss, self._inputs | self.scopes.times.leaves)
        for index, vertex in enumerate(self.graph.vertices):
            if vertex.kind == "activation":
                self._units.add(index, vertex, _after_convolution(vertex))
                self.scopes.observe_saved(vertex)
            elif vertex.kind == "normalization":
                self._counts[index] = normalized_count(vertex)
        slots = self._hook_outputs(self.graph)
        for index, vertex in enumerate(self.graph.vertices):
            if not vertex.hidden:
                self._hook_input(index, vertex, slots)
        return self.graph

    def _hook_outputs(self, graph: Graph) -> dict[int, int]:
        """Measure the gradient that arrives at each site; number of the node -> slot."""
        slots: dict[int, int] = {}
        for index, vertex in enumerate(graph.vertices):
            if vertex.hidden:
                continue
            slot = self._grad_out[index] = slots[vertex.number] = self._norms.slot()
            self._hooks.append(vertex.node.register_prehook(partial(self._arrived, index, slot, vertex.dtype)))
        return slots

    def _arrived(self, index: int, slot: int, dtype: str, gradients: tuple[Tensor | None, ...]) -> None:
        gradient = next((g for g in gradients if g is not None), None)
        if gradient is None:
            return
        self._norms.put(slot, gradient)
        if dtype in LOW_PRECISION and gradient.layout == torch.strided:
            self._zeros[index] = 1 - float(gradient.count_nonzero()) / max(1, gradient.numel())

    def _hook_input(self, index: int, vertex: Vertex, slots: dict[int, int]) -> None:
        """The gradient a site passes on is what arrives at the site below, unless others add to it there."""
        if vertex.kind == "merge" or not vertex.data:
            return
        position, below = vertex.data[0]
        while below.hidden and below.isometry and below.readers == 1 and below.data:
            below = below.data[0][1]
        if below.readers == 1 and not below.hidden and len(vertex.data) == 1:
            self._grad_in[index] = slots[below.number]
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
        sites = self._describe(self.graph)
        units = self._units.finish()
        orders = {index: order for order, index in enumerate(self._visible(self.graph))}
        self.graph = replace_nodes(self.graph)
        return sites, {orders[index]: unit for index, unit in units.items() if index in orders}

    @staticmethod
    def _visible(graph: Graph) -> list[int]:
        return [index for index, vertex in enumerate(graph.vertices) if not vertex.hidden]

    def _describe(self, graph: Graph) -> tuple[Site, ...]:
        owners = self.scopes.owners([vertex.number for vertex in graph.vertices])
        names = Namer(self.scopes, self._names).names(graph, owners)
        forward = self.scopes.moments.finish()
        units = self._units.finish()
        sources, depths = _topology(graph)
        references = _references(graph)
        sites = []
        for order, index in enumerate(self._visible(graph)):
            vertex, name = graph.vertices[index], names[index]
            sites.append(
                Site(
                    name=name.path,
                    op=vertex.op,
                    kind="loss" if name.loss and vertex.kind in ("other", "merge") else vertex.kind,
                    order=order,
                    shape=vertex.shape,
                    dtype=vertex.dtype,
                    depth=depths[index],
                    call=name.call,
                    inputs=sources[index],
                    parameter=name.parameter,
                    forward=forward.get(vertex.number),
                    log_grad_out=self._norms.log(self._grad_out[index]),
                    log_grad_in=self._log(self._grad_in.get(index)),
                    reference=references.get(index),
                    dead=_dead_share(units.get(index)),
                    saturated=units[index].saturated if index in units else None,
                    zero_gradient=self._zeros.get(index),
                    normalized_count=self._counts.get(index),
                )
            )
        return tuple(sites)

    def _log(self, slot: int | None) -> float | None:
        return None if slot is None else self._norms.log(slot)


class _Watcher(Scopes):
    """Scopes that also measure what every module puts out, and the time axis of recurrent modules."""

    def __init__(self, names: Names, batch_size: int | None) -> None:
        super().__init__(names.modules)
        self.batch_size = batch_size
        self.moments = MomentQueue(batch_size)
        self.times = TimeWatch(names.modules)
        self.output: Any = None
        self._measured: set[int] = set()

    def enter(self, module: nn.Module, args: Any) -> Any:
        super().enter(module, args)
        return self.times.enter(module, args) if isinstance(module, nn.RNNBase) else None

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        super().leave(module, args, output)
        if id(module) not in self.names:
            return
        if not self._open:
            self.output = output
        if isinstance(module, nn.RNNBase):
            self.times.leave(module, output)
        for tensor in tensors_in(output):
            node = tensor.grad_fn
            if node is None or (number := node._sequence_nr()) in self._measured:
                continue
            self._measured.add(number)
            self.moments.add(number, tensor)

    def observe_saved(self, vertex: Vertex) -> None:
        """Forward value of a functional activation and of what feeds it, which autograd kept for the backward pass."""
        for attribute, number in (("_saved_result", vertex.number), ("_saved_self", _producer(vertex))):
            if number in self._measured or number < 0 or not readable(vertex):
                continue
            if attribute.replace("_saved", "_raw_saved") in dir(type(vertex.node)):
                self._measured.add(number)
                self.moments.add(number, getattr(vertex.node, attribute))


def _producer(vertex: Vertex) -> int:
    """Number of the node whose output this one reads; -1 where that is a view or unknown."""
    below = vertex.data[0][1] if vertex.data else None
    return -1 if below is None or below.hidden else below.number


def _after_convolution(vertex: Vertex) -> bool:
    """Is the nearest op with weights below this one a convolution, so that axis 1 holds the units?"""
    while vertex.data:
        vertex = vertex.data[0][1]
        if vertex.kind in ("linear", "convolution", "recurrent", "attention", "embedding"):
            return vertex.kind == "convolution"
    return False


def _topology(graph: Graph) -> tuple[list[tuple[int, ...]], list[int]]:
    """Per vertex: the orders of the visible sites it reads, and its depth in sites."""
    orders: dict[int, tuple[int, ...]] = {}
    depth: dict[int, int] = {}
    sources, depths, order = [], [], 0
    for vertex in graph.vertices:
        below = [source for _, source in vertex.data]
        reads = tuple(dict.fromkeys(o for source in below for o in orders[id(source)]))
        level = max((depth[id(source)] for source in below), default=0) + (not vertex.hidden)
        orders[id(vertex)] = reads if vertex.hidden else (order,)
        depth[id(vertex)] = level
        order += not vertex.hidden
        sources.append(reads)
        depths.append(level)
    return sources, depths


def _references(graph: Graph) -> dict[int, float]:
    """A_ref per activation, and per linear or convolution the A_ref of the activation it feeds (0: it feeds none)."""
    references: dict[int, float] = {}
    position = {id(vertex): index for index, vertex in enumerate(graph.vertices)}
    for index, vertex in enumerate(graph.vertices):
        if vertex.kind in ("linear", "convolution"):
            references.setdefault(index, 0.0)
        if vertex.kind != "activation":
            continue
        reference = references[index] = math.log(theory.small_signal_slope(vertex.op))
        below = vertex.data[0][1] if vertex.data else None
        while below is not None and (below.hidden or below.kind == "normalization") and len(below.data) == 1:
            below = below.data[0][1]
        if below is not None and below.kind in ("linear", "convolution"):
            references[position[id(below)]] = reference
    return references


def _dead_share(units: Units | None) -> float | None:
    return None if units is None else 1 - float(units.alive.float().mean())


def normalized_count(vertex: Vertex) -> int | None:
    """Number of elements a normalisation takes its statistics over; None for other ops and for frozen statistics."""
    node, shape = vertex.node, vertex.shape
    if vertex.op == "batch_norm" and len(shape) > 1:
        return math.prod(shape) // shape[1] if getattr(node, "_saved_training", True) else None
    if vertex.op in ("layer_norm", "rms_norm"):
        return math.prod(node._saved_normalized_shape)
    if vertex.op == "group_norm":
        return int(node._saved_C) * int(node._saved_HxW) // int(node._saved_group)
    return None


def replace_nodes(graph: Graph) -> Graph:
    """Let go of the autograd nodes, which hold the whole graph and its tensors alive."""
    for vertex in graph.vertices:
        vertex.node = None
    return graph


def merge_units(first: tuple[Site, ...], one: dict[int, Units], other: dict[int, Units]) -> tuple[Site, ...]:
    """Sites of two probes of the same graph: a unit is dead only if it was dead in both batches."""
    merged = []
    for site in first:
        a, b = one.get(site.order), other.get(site.order)
        if a is None or b is None or a.alive.shape != b.alive.shape:
            merged.append(site)
            continue
        dead = 1 - float((a.alive | b.alive).float().mean())
        share = None if a.saturated is None or b.saturated is None else (a.saturated + b.saturated) / 2
        merged.append(replace(site, dead=dead, saturated=share))
    return tuple(merged)
