"""Where a NaN or Inf of the user's own step was born, read from the values autograd saved: nothing is run again."""

from __future__ import annotations

import torch
from torch import Tensor

from unvanish.torch.probe.graph import Graph, Vertex, read_graph
from unvanish.torch.probe.naming import Names, name_vertices
from unvanish.torch.probe.saved import readable
from unvanish.torch.probe.scopes import Scopes
from unvanish.types import NonFinite

_ENDLESS = (
    "log",
    "log2",
    "log10",
    "div",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "exp",
    "expm1",
    "pow",
    "acos",
    "asin",
    "atanh",
)
_UNARY = ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "acos", "asin", "atanh")
_TOTAL = ("softmax", "log_softmax", "relu", "sigmoid", "tanh")  # finite for all that is


def find_birth(graph: Graph | None, scopes: Scopes, names: Names) -> NonFinite | None:
    """First op, going forward, whose output is not finite although what went in is; call it before the backward pass.

    Args:
        graph: the graph of the loss that is NaN or Inf.
        scopes: the module calls of the forward pass; none where it was not watched.
        names: modules and parameters as the user knows them.
    """
    if graph is None:
        return None
    for key, leaf in graph.leaves.items():
        if not _finite(leaf):
            name = names.parameters.get(key, "an input")
            return NonFinite(name, "parameter", "parameter", 0, "the weights themselves are not finite")
    for vertex in graph.vertices:
        target = getattr(vertex.node, "_saved_target", None) if vertex.kind == "loss" and readable(vertex) else None
        if isinstance(target, Tensor) and not _finite(target):
            return NonFinite("target", "data", "input", 0, _count(target))
    bad = _bad_outputs(graph)
    suspects = [v for v in graph.vertices if id(v) in bad] or [v for v in graph.vertices if v.op in _ENDLESS][-1:]
    if not suspects:
        return NonFinite("loss", "unknown", "forward", 0)
    first = _source(suspects[0])
    inputs = _saved(first, outputs=False)
    if any(not _finite(tensor) for tensor in inputs) and first.raw_input:
        return NonFinite("input", "data", "input", 0, _range(inputs))
    named = name_vertices(graph, scopes, names)
    return NonFinite(
        "loss" if first.index in named.outside else named.paths[first.index], first.op, "forward", 0, _range(inputs)
    )


def find_birth_unwatched(loss: Tensor, names: Names) -> NonFinite | None:
    """The same for a step whose forward pass was not watched: layers are named by their parameters."""
    return find_birth(read_graph(loss, set()), Scopes(names.modules), names)


def _bad_outputs(graph: Graph) -> set[int]:
    """Vertices whose output is known not to be finite, from what they or the op above them saved."""
    bad = set()
    for vertex in graph.vertices:
        if _leaves_its_domain(vertex) or any(not _finite(tensor) for tensor in _saved(vertex, outputs=True)):
            bad.add(id(vertex))
        if any(not _finite(tensor) for tensor in _saved(vertex, outputs=False)):
            bad.update([id(below) for below in vertex.below] if len(vertex.below) == 1 else [])
            if not vertex.below:
                bad.add(id(vertex))
    return bad


def _source(vertex: Vertex) -> Vertex:
    """The weights below an op that is finite wherever its input is: their sum was not.  (A mask's -inf is no fault.)"""
    below = vertex.below[0] if len(vertex.below) == 1 else None
    if vertex.op not in _TOTAL or below is None or below.kind not in ("linear", "convolution"):
        return vertex
    return below


def _leaves_its_domain(vertex: Vertex) -> bool:
    """Of what this op saved as its input, the result is not finite: log of 0, acos of 1.01, a divisor of 0."""
    divisor = getattr(vertex.node, "_saved_other", None) if vertex.op == "div" and readable(vertex) else None
    if isinstance(divisor, Tensor):
        return bool((divisor == 0).any())
    given = getattr(vertex.node, "_saved_self", None) if vertex.op in _UNARY and readable(vertex) else None
    return isinstance(given, Tensor) and _finite(given) and not _finite(getattr(torch, vertex.op)(given.detach()))


def _saved(vertex: Vertex, *, outputs: bool) -> list[Tensor]:
    if not readable(vertex):
        return []
    names = [name for name in dir(type(vertex.node)) if name.startswith("_saved_")]
    chosen = [name for name in names if ("result" in name or "output" in name) == outputs and "grad" not in name]
    values = [getattr(vertex.node, name) for name in chosen]
    return [value for value in values if isinstance(value, Tensor)]


def _finite(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and (tensor.is_floating_point() or tensor.is_complex())
    return not plain or bool(torch.isfinite(tensor).all())


def _count(tensor: Tensor) -> str:
    return f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values"


def _range(tensors: list[Tensor]) -> str:
    """The range of what went in, which usually names the bug: log of 0, exp of 1000, a zero divisor."""
    parts = [
        f"{list(tensor.shape)} in [{float(tensor.detach().min()):.4g}, {float(tensor.detach().max()):.4g}]"
        for tensor in tensors[:2]
        if tensor.is_floating_point() and tensor.numel()
    ]
    return "its input was " + " and ".join(parts) if parts else ""
