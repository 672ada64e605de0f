"""One term of several: how far the network has learnt it, and a backward pass without the others.

A penalty that is summed where the error is averaged, or a divergence that is, outweighs it by the number of elements:
the loss falls all the same, as the network learns to please the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.probe.graph import Graph, Vertex
from unvanish.torch.views.floors import level_of, own_value
from unvanish.torch.views.losses import read_loss

_SUMS = ("add", "sub", "cat", "stack")


@dataclass(frozen=True, slots=True)
class Term:
    """``level``: what it gives, in units of what the best constant prediction would; ``others``: nodes beside it.

    ``value``: what it gives by itself, without factors that the user put on it; None where it is not known.
    """

    kind: str
    level: float
    value: float | None
    others: tuple[Any, ...]

    def alone(self) -> None:
        """Let nothing of the gradient through to the others in the backward pass that comes next."""
        for node in self.others:
            node.register_prehook(_nothing)


def find_term(graph: Graph | None) -> Term | None:
    """The only term of a loss whose constant prediction is known; None where it stands alone, or where there are more.

    Args:
        graph: that of the loss, before a backward pass frees it.
    """
    if graph is None or graph.root is None:
        return None
    nodes = [vertex for vertex in graph.vertices if vertex.kind == "loss"]
    if not nodes or (
        len(nodes) == 1 and not any(_beside(graph, nodes[0]))
    ):  # as a rule; levels are read from all scores
        return None
    readings = [(reading, level_of(reading)) for reading in map(read_loss, nodes)]
    known = [(reading, level) for reading, level in readings if level is not None]
    if len(known) != 1:
        return None
    ((reading, level),) = known
    others = tuple(dict.fromkeys(_beside(graph, reading.vertex)))
    return Term(reading.kind, level, own_value(reading), others) if others else None


def _beside(graph: Graph, term: Vertex) -> Iterator[Any]:
    """The nodes that sums between a term and the loss read beside it; a factor is no term."""
    through = {id(term)}
    above = [vertex for vertex in graph.vertices if _reads(vertex, through)]
    kept = {term.node, *(vertex.node for vertex in above)}
    for vertex in (vertex for vertex in above if vertex.op in _SUMS):
        for source, _ in vertex.node.next_functions:
            if source is not None and source not in kept and not hasattr(source, "variable"):
                yield source


def _reads(vertex: Vertex, through: set[int]) -> bool:
    """Does it read what is in ``through``? Then it is in there, too."""
    found = any(id(source) in through for source in vertex.below)
    if found:
        through.add(id(vertex))
    return found


def _nothing(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else torch.zeros_like(gradient) for gradient in gradients)
