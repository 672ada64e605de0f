"""Where PyTorch's backward is not the derivative on purpose: a check must know, or it calls right networks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

_HANDED_IN = ("AccumulateGrad", "CloneBackward0", "ViewAsComplexBackward0", "ViewAsRealBackward0")


@dataclass(slots=True)
class Graph:
    """What the graph of some outputs tells: the ids of its leaves, and of those with a convention of their own."""

    leaves: set[int]
    log_probabilities: bool = False  # CTC loss: the derivative of itself after a log-softmax (its documentation)
    padding: dict[int, int] = field(default_factory=dict)  # an embedding's weight: the row that gets no gradient
    by_frequency: set[int] = field(default_factory=set)  # an embedding's weight: each row's is divided by its count


def graph_of(outputs: Sequence[Tensor]) -> Graph:
    """Walk the graph behind these outputs."""
    graph = Graph({id(y) for y in outputs if y.is_leaf})
    for node in _nodes(outputs):
        name = type(node).__name__  # node.name() takes longer than many a node's own work
        if name == "AccumulateGrad":
            graph.leaves.add(id(node.variable))
        elif name.startswith("CtcLoss"):
            graph.log_probabilities = True
        elif name in ("EmbeddingBackward0", "EmbeddingBagBackward0"):
            _embedding(node, graph)
    return graph


def is_one_function(outputs: Sequence[Tensor]) -> bool:
    """Does a custom Function make all of them, and nothing else? Its backward is written by hand."""
    names = [type(node) for node in _nodes(outputs)]
    custom = [one for one in names if issubclass(one, BackwardCFunction)]
    return len(custom) == 1 and all(one in custom or one.__name__ in _HANDED_IN for one in names)


def _embedding(node: Any, graph: Graph) -> None:
    weight = getattr(node.next_functions[0][0], "variable", None)
    if isinstance(weight, Tensor):
        if 0 <= node._saved_padding_idx < len(weight):  # none is -1, which arrives as 2 ** 64 - 1
            graph.padding[id(weight)] = int(node._saved_padding_idx)
        if node._saved_scale_grad_by_freq:
            graph.by_frequency.add(id(weight))


def _nodes(outputs: Sequence[Tensor]) -> Iterator[Any]:
    rest: list[Any] = [y.grad_fn for y in outputs if y.grad_fn is not None]
    seen = set(rest)
    while rest:
        node = rest.pop()
        yield node
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                rest.append(after)


def are_log_probabilities(values: Tensor) -> bool:
    """Do the exponentials along the last axis sum to one?"""
    return values.ndim > 1 and bool(values.logsumexp(-1).abs().max() < 1e-4)
