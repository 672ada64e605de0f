"""From a watched graph to sites: names, depth, references and the measured numbers, one Site per visible vertex."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from unvanish import theory
from unvanish.torch.probe.activations import Units
from unvanish.torch.probe.frozen import maker
from unvanish.torch.probe.graph import Graph, Vertex
from unvanish.torch.probe.naming import Named
from unvanish.types import Moments, Site

_site = maker(Site)


@dataclass(slots=True)
class Measured:
    """What the hooks measured, by index of the vertex.

    ``logs`` of the gradients, of which the first arrived at the vertices; ``passed`` says which one a vertex passed on.
    """

    forward: list[Moments | None]
    logs: list[float | None]
    passed: list[int | None]
    units: dict[int, Units]
    zeros: dict[int, float]
    nonfinite: dict[int, int]
    counts: dict[int, int | None]
    one_hot: dict[int, float | None]
    log_slopes: dict[int, float]  # best slope of the activations that no table knows


def describe(graph: Graph, named: Named, measured: Measured) -> tuple[Site, ...]:
    """The sites of a graph in forward order; its vertices are let go of, so that both are never there at once."""
    place = Topology(graph.vertices).place
    references = _references(graph, measured.log_slopes)
    forward, logs, passed = measured.forward, measured.logs, measured.passed
    lived, zeros, bad, counts = measured.units.get, measured.zeros.get, measured.nonfinite.get, measured.counts.get
    one_hot = measured.one_hot.get
    paths, calls, parameters, outside = named.paths, named.calls, named.parameters, named.outside
    sites: list[Site] = []
    left = graph.vertices
    left.reverse()
    while left:
        vertex = left.pop()
        order, depth, reads = place(vertex)
        custom = vertex.custom
        vertex.node, vertex.below = None, ()  # lets go of the graph, and of the vertices before it
        if vertex.hidden:
            continue
        index, kind, (shape, dtype, _) = vertex.index, vertex.kind, vertex.form
        unit, slot = lived(index), passed[index]
        sites.append(
            _site(  # by position, in the order of Site's fields: keywords take three times as long
                paths[index],
                vertex.op,
                "loss" if index in outside and kind in ("other", "merge") else kind,
                order,
                shape,
                dtype,
                depth,
                calls.get(index, 0),
                reads,
                parameters[index],
                forward[index],
                logs[index],
                None if slot is None else logs[slot],
                references[index],
                None if unit is None else unit.dead,
                one_hot(index) if unit is None else unit.saturated,
                zeros(index),
                bad(index, 0),
                counts(index),
                custom=custom,  # by keyword: Python 3.11 never uses the memory of 20 arguments again
            )
        )
    return tuple(sites)


class Topology:
    """Where vertices, which come in forward order, stand among the visible sites."""

    def __init__(self, vertices: list[Vertex]) -> None:
        # the whole numbers as objects that are there already: thousands of equal ones would take memory
        self._whole = [*(vertex.index for vertex in vertices), len(vertices)]
        self._shown: list[tuple[int, ...]] = []  # per vertex: orders of the sites that a reader of it reads
        self._depths: list[int] = []
        self._order = 0

    def place(self, vertex: Vertex) -> tuple[int, int, tuple[int, ...]]:
        """Its order among the sites, its depth in sites, and the orders of those it reads."""
        below = vertex.below
        if len(below) == 1:
            index = below[0].index
            reads, depth = self._shown[index], self._depths[index]
        else:
            reads = tuple(dict.fromkeys(order for source in below for order in self._shown[source.index]))
            depth = max((self._depths[source.index] for source in below), default=0)
        order = self._whole[self._order]
        if not vertex.hidden:
            self._order += 1
            depth = self._whole[depth + 1]
        self._shown.append(reads if vertex.hidden else (order,))
        self._depths.append(depth)
        return order, depth, reads


@cache
def _log_slope(op: str) -> float:
    return math.log(theory.small_signal_slope(op))


def _references(graph: Graph, log_slopes: dict[int, float]) -> list[float | None]:
    """A_ref per activation, and per linear or convolution the A_ref of the activation it feeds (0: it feeds none)."""
    references: list[float | None] = [0.0 if v.kind in ("linear", "convolution") else None for v in graph.vertices]
    fed: set[int] = set()
    for vertex in reversed(graph.vertices):  # readers come after what they read
        if vertex.kind != "activation":
            continue
        known = log_slopes.get(vertex.index)
        slope = references[vertex.index] = _log_slope(vertex.op) if known is None else known
        below = vertex.below[0] if vertex.below else None
        while below is not None and (below.hidden or below.kind == "normalization") and len(below.below) == 1:
            below = below.below[0]
        if below is not None and below.kind in ("linear", "convolution") and below.index not in fed:
            fed.add(below.index)  # the last to read it counts
            references[below.index] = slope
    return references


def normalized_count(vertex: Vertex) -> int | None:
    """Number of elements a normalisation takes its statistics over; None for other ops and for frozen statistics."""
    node, shape = vertex.node, vertex.shape
    if vertex.op == "batch_norm" and len(shape) > 1:
        return math.prod(shape) // shape[1] if getattr(node, "_saved_training", True) else None
    if vertex.op in ("layer_norm", "rms_norm"):
        return math.prod(int(n) for n in node._saved_normalized_shape)
    if vertex.op == "group_norm":
        return int(node._saved_C) * int(node._saved_HxW) // int(node._saved_group)
    return None


def merge_units(first: tuple[Site, ...], one: dict[int, Units], other: dict[int, Units]) -> tuple[Site, ...]:
    """Sites of two probes of the same graph: a unit is dead only if it was dead in both batches."""
    merged = []
    for site in first:
        a, b = one.get(site.order), other.get(site.order)
        if a is None or b is None or a.alive.shape != b.alive.shape:
            merged.append(site)
            continue
        alive = a.alive | b.alive
        dead = 1 - int(alive.count_nonzero()) / max(1, alive.numel())
        share = None if a.saturated is None or b.saturated is None else (a.saturated + b.saturated) / 2
        merged.append(replace(site, dead=dead, saturated=share))
    return tuple(merged)
