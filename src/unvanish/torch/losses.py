"""What the loss reads: its kind, what feeds it, and what a prediction that ignores the input would reach.

A loss stuck at the constant predictor's (ln C for balanced classes, the variance for MSE) says more than any norm.
Everything is read from the graph and its saved tensors, so that it holds for any program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.activations import readable
from unvanish.torch.graph import Graph, Vertex
from unvanish.torch.moments import moments
from unvanish.types import LossView

_REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}
_THROUGH = ("mean", "sum", "div", "mul", "neg", "add", "sub", "to_copy")
_SATURATED = 0.02  # a probability within this of 0 or 1 has a sigmoid slope below 8 % of its best


@dataclass(slots=True)
class _Reading:
    """The loss node with its saved tensors, while the graph is alive."""

    vertex: Vertex
    kind: str
    reads: Vertex | None
    saved: Tensor | None
    target: Tensor | None


def view_loss(loss: Tensor, graph: Graph | None, output: Tensor | None, target: Tensor | None) -> LossView:
    """Describe ``loss``; call it before the backward pass frees the graph.

    Args:
        loss: the scalar the user would call backward on.
        graph: its graph, None where it requires no gradient.
        output: the network's (main) output, where known.
        target: what the network should put out, where known.

    Returns:
        What was seen; fields that could not be observed are None.
    """
    view = LossView(value=float(loss.detach()), requires_grad=loss.requires_grad)
    if output is not None:
        view = replace(view, output=moments(output, _batch(output)), output_shape=tuple(output.shape))
    if target is not None:
        view = _with_target(view, target)
    if graph is None or graph.root is None:
        return view
    return _from_graph(view, graph, output, target)


def _from_graph(view: LossView, graph: Graph, output: Tensor | None, target: Tensor | None) -> LossView:
    nodes = [vertex for vertex in graph.vertices if vertex.kind == "loss"]
    broadcast = _broadcast(graph)
    if len(nodes) != 1:
        guess = _by_value(view.value, output, target) if not nodes else None
        feeding = _feeding(graph.root)
        view = replace(view, terms=max(1, len(nodes)), broadcast=broadcast, **_fed(feeding))
        return view if guess is None else replace(view, kind=guess[0], floor=guess[1])
    reading = _read(nodes[0])
    seen = reading.target if reading.target is not None else target
    view = replace(view, kind=reading.kind, broadcast=broadcast, **_fed(reading.reads))
    reduction = getattr(reading.vertex.node, "_saved_reduction", None)
    view = replace(view, reduction=_REDUCTIONS.get(int(reduction)) if reduction is not None else None)
    if reading.target is not None:
        view = _with_target(view, reading.target)
    if reading.saved is not None:
        view = replace(view, output_saturated=_saturated(reading), classes=_classes(reading))
    return replace(view, floor=_floor(view, reading, seen)) if seen is not None else view


def _read(vertex: Vertex) -> _Reading:
    """Kind of a loss node and what it reads; LogSoftmax below a negative log likelihood is one cross-entropy."""
    kind, reads = vertex.op, _site_below(vertex)
    saved = target = None
    if readable(vertex):
        saved = getattr(vertex.node, "_saved_self", None)
        target = getattr(vertex.node, "_saved_target", None)
    if kind == "nll" and reads is not None and reads.op == "log_softmax":
        kind, reads = "cross_entropy", _site_below(reads)
    return _Reading(vertex, kind, reads, saved, target)


def _site_below(vertex: Vertex) -> Vertex | None:
    """The op whose output this one reads, past views and dropout-free plumbing."""
    below = vertex.data[0][1] if vertex.data else None
    while below is not None and below.hidden:
        below = below.data[0][1] if below.data else None
    return below


def _feeding(root: Vertex | None) -> Vertex | None:
    """For a loss written by hand: the first op below the reductions that is no plain arithmetic."""
    while root is not None and (root.hidden or root.op in (*_THROUGH, "pow", "abs", "log", "square")):
        root = root.data[0][1] if root.data else None
    return root


def _fed(vertex: Vertex | None) -> dict[str, Any]:
    return {} if vertex is None else {"feeding": vertex.op}


def _with_target(view: LossView, target: Tensor) -> LossView:
    known = replace(view, target_shape=tuple(target.shape))
    if not target.is_floating_point() or target.numel() == 0:
        return known
    low, high = float(target.min()), float(target.max())
    return replace(known, target=moments(target, _batch(target)), target_range=(low, high))


def _batch(tensor: Tensor) -> int | None:
    return tensor.shape[0] if tensor.ndim else None


def _classes(reading: _Reading) -> int | None:
    if reading.kind not in ("cross_entropy", "nll") or reading.saved is None:
        return None
    return reading.saved.shape[1] if reading.saved.ndim > 1 else reading.saved.shape[0]


def _saturated(reading: _Reading) -> float | None:
    """Share of predicted probabilities so near 0 or 1 that a sigmoid before them passes nothing."""
    saved = reading.saved
    if saved is None or reading.reads is None or reading.reads.op not in ("sigmoid", "softmax"):
        return None
    near = (saved < _SATURATED) | (saved > 1 - _SATURATED)
    return float(near.float().mean())


def _broadcast(graph: Graph) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(n, 1) predictions against (n,) targets: the loss compares every prediction with every target, (n, n)."""
    for vertex in graph.vertices:
        widened = len(vertex.shape) == 2 and vertex.shape[0] == vertex.shape[1] > 1
        by_loss = vertex.stem == "Expand" or (vertex.op in ("sub", "add", "mul") and vertex.kind == "other")
        if not (widened and by_loss and len(vertex.data) == 1):
            continue
        source = vertex.data[0][1]
        if source.shape == (vertex.shape[0], 1) and _reaches_loss_only(vertex, graph):
            return source.shape, (vertex.shape[0],)
    return None


def _reaches_loss_only(vertex: Vertex, graph: Graph) -> bool:
    """No weight is applied after this vertex: it stands in the loss."""
    after = {id(vertex)}
    for other in graph.vertices:
        if any(id(below) in after for _, below in other.data):
            after.add(id(other))
            if other.parameters or other.kind in ("linear", "convolution", "attention"):
                return False
    return True


def _floor(view: LossView, reading: _Reading, target: Tensor) -> float | None:
    """Loss of the best constant prediction on these targets, in the units of the user's loss."""
    best = constant_loss(reading.kind, target, getattr(reading.vertex.node, "_saved_ignore_index", -100))
    if best is None or view.broadcast is not None:
        return best
    if view.reduction == "sum":
        best *= target.numel()
    own = _node_value(reading)
    plain = _only_scaled(reading.vertex, view)
    return best * view.value / own if own and plain and abs(own - view.value) > 1e-4 * abs(own) else best


def _only_scaled(vertex: Vertex, view: LossView) -> bool:
    return vertex.shape == () and view.terms == 1 and math.isfinite(view.value)


def _node_value(reading: _Reading) -> float | None:
    """The loss node's own value, to see a factor the user put on it (gradient accumulation, a weight)."""
    saved, target = reading.saved, reading.target
    if saved is None or target is None:
        return None
    with torch.no_grad():
        value = _evaluate(reading.kind, saved.float(), target if target.dtype == torch.long else target.float())
        return None if value is None else value * (target.numel() if reading.vertex.node._saved_reduction == 2 else 1)


def _evaluate(kind: str, saved: Tensor, target: Tensor) -> float | None:
    functional = torch.nn.functional
    if kind in ("cross_entropy", "nll"):
        return None
    if kind == "mse":
        return float(functional.mse_loss(saved, target))
    if kind == "bce_with_logits":
        return float(functional.binary_cross_entropy_with_logits(saved, target))
    return None


def constant_loss(kind: str, target: Tensor, ignore_index: int = -100) -> float | None:
    r"""Mean loss of the best prediction that does not look at the input.

    .. math:: H(p) \text{ (cross-entropy)},\quad \mathrm{Var}(y) \text{ (MSE)},\quad E|y - \mathrm{med}(y)| \text{ (L1)}

    Args:
        kind: "cross_entropy", "nll", "bce", "bce_with_logits", "mse" or "l1".
        target: targets of one batch, samples along axis 0.
        ignore_index: class index that does not count.

    Returns:
        The loss in nats or squared / absolute units, None where it is unknown or 0 (a batch of one).
    """
    target = target.detach()
    if kind in ("cross_entropy", "nll") and not target.is_floating_point():
        kept = target[target != ignore_index]
        share = torch.unique(kept, return_counts=True)[1].double()
        share = share / share.sum().clamp_min(1)
        return _positive(float(-(share * share.log()).sum()))
    wide = target.double()
    rows = wide.reshape(len(wide), -1) if wide.ndim else wide.reshape(1, 1)
    if kind in ("bce", "bce_with_logits"):
        p = rows.mean(dim=0).clamp(1e-12, 1 - 1e-12)
        return _positive(float(-(p * p.log() + (1 - p) * (1 - p).log()).mean()))
    if kind == "mse":
        return _positive(float(rows.var(dim=0, unbiased=False).mean()))
    if kind == "l1":
        return _positive(float((rows - rows.median(dim=0).values).abs().mean()))
    return None


def _positive(value: float) -> float | None:
    return value if value > 1e-12 else None


def _by_value(value: float, output: Tensor | None, target: Tensor | None) -> tuple[str, float | None] | None:
    """A loss written by hand that has exactly the value of a known one is that one."""
    if output is None or target is None or output.shape != target.shape or not target.is_floating_point():
        return None
    difference = output.detach().double() - target.double()
    for kind, known in (("mse", difference.square()), ("l1", difference.abs())):
        if math.isclose(float(known.mean()), value, rel_tol=1e-4):
            return kind, constant_loss(kind, target)
    return None
