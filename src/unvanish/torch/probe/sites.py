"""From a watched graph to sites: names, depth, references and the measured numbers, one Site per visible vertex."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from unvanish import theory
from unvanish.torch.probe.activations import Units
from unvanish.torch.probe.frozen import maker
from unvanish.torch.probe.graph import Graph, Vertex
from unvanish.torch.probe.naming import SiteName
from unvanish.types import Moments, Site

_site = maker(Site)


@dataclass(slots=True)
class Measured:
    """What the hooks measured, by index of the vertex (``forward`` by number of the node)."""

    forward: dict[int, Moments]
    log_out: dict[int, float | None]
    log_in: dict[int, float | None]
    units: dict[int, Units]
    zeros: dict[int, float]
    nonfinite: dict[int, int]
    counts: dict[int, int | None]
    one_hot: dict[int, float | None]
    log_slopes: dict[int, float]  # best slope of the activations that no table knows


def describe(graph: Graph, names: list[SiteName], measured: Measured) -> tuple[Site, ...]:
    """The sites of a graph in forward order."""
    sources, depths = topology(graph)
    references = _references(graph, measured.log_slopes)
    forward, out, into = measured.forward.get, measured.log_out.get, measured.log_in.get
    lived, zeros, bad, counts = measured.units.get, measured.zeros.get, measured.nonfinite.get, measured.counts.get
    one_hot = measured.one_hot.get
    sites: list[Site] = []
    for index, vertex in enumerate(graph.vertices):
        if vertex.hidden:
            continue
        path, call, parameter, outside = names[index]
        unit, kind = lived(index), vertex.kind
        sites.append(
            _site(  # by position, in the order of Site's fields: keywords take three times as long
                path,
                vertex.op,
                "loss" if outside and kind in ("other", "merge") else kind,
                len(sites),
                vertex.shape,
                vertex.dtype,
                depths[index],
                call,
                sources[index],
                parameter,
                forward(vertex.number),
                out(index),
                into(index),
                references.get(index),
                None if unit is None else unit.dead,
                one_hot(index) if unit is None else unit.saturated,
                zeros(index),
                bad(index, 0),
                counts(index),
                vertex.custom,
            )
        )
    return tuple(sites)


def topology(graph: Graph) -> tuple[list[tuple[int, ...]], list[int]]:
    """Per vertex: the orders of the visible sites it reads, and its depth in sites."""
    seen: dict[int, tuple[tuple[int, ...], int]] = {}  # id -> (orders a reader of this vertex reads, depth)
    sources: list[tuple[int, ...]] = []
    depths: list[int] = []
    order = 0
    for vertex in graph.vertices:
        if len(vertex.data) == 1:
            reads, level = seen[id(vertex.data[0][1])]
        else:
            below = [seen[id(source)] for _, source in vertex.data]
            reads = tuple(dict.fromkeys(o for orders, _ in below for o in orders))
            level = max((depth for _, depth in below), default=0)
        if vertex.hidden:
            seen[id(vertex)] = reads, level
        else:
            level += 1
            seen[id(vertex)] = (order,), level
            order += 1
        sources.append(reads)
        depths.append(level)
    return sources, depths


@cache
def _log_slope(op: str) -> float:
    return math.log(theory.small_signal_slope(op))


def _references(graph: Graph, log_slopes: dict[int, float]) -> dict[int, float]:
    """A_ref per activation, and per linear or convolution the A_ref of the activation it feeds (0: it feeds none)."""
    references: dict[int, float] = {}
    fed: dict[int, float] = {}  # id of a linear vertex -> A_ref of the activation it feeds
    for index in range(len(graph.vertices) - 1, -1, -1):  # readers come after what they read
        vertex = graph.vertices[index]
        if vertex.kind in ("linear", "convolution"):
            references[index] = fed.get(id(vertex), 0.0)
        if vertex.kind != "activation":
            continue
        known = log_slopes.get(index)
        references[index] = _log_slope(vertex.op) if known is None else known
        below = vertex.data[0][1] if vertex.data else None
        while below is not None and (below.hidden or below.kind == "normalization") and len(below.data) == 1:
            below = below.data[0][1]
        if below is not None and below.kind in ("linear", "convolution"):
            fed.setdefault(id(below), references[index])  # the last to read it counts
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
        if a is None or b is None or a.peaks[0].shape != b.peaks[0].shape:
            merged.append(site)
            continue
        alive = a.alive | b.alive
        dead = 1 - int(alive.count_nonzero()) / max(1, alive.numel())
        share = None if a.saturated is None or b.saturated is None else (a.saturated + b.saturated) / 2
        merged.append(replace(site, dead=dead, saturated=share))
    return tuple(merged)
