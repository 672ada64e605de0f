"""What the loss reads: its kind, what feeds it, and what a prediction that ignores the input would reach.

A loss stuck at the constant predictor's (ln C for balanced classes, the variance for MSE) says more than any norm.
Everything is read from the graph and its saved tensors, so that it holds for any program.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from unvanish.torch.probe.graph import Graph, Vertex
from unvanish.torch.probe.moments import moments
from unvanish.torch.probe.saved import readable
from unvanish.torch.probe.softmax import crossed_by, softmax_axis
from unvanish.torch.views.divergences import divergence
from unvanish.torch.views.floors import Reading, constant_loss, floor_by_value, floor_of, soft_floor
from unvanish.torch.views.shapes import broadcast, reordered
from unvanish.torch.views.smoothing import smoothed_floor
from unvanish.types import LossView, Moments
from unvanish.vocabulary import DISTANCES

__all__ = ["constant_loss", "view_loss"]

_REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}
_THROUGH = ("mean", "sum", "div", "mul", "neg", "add", "sub", "to_copy")
_GUARDS = ("add", "clamp", "clamp_min", "clamp_max")
_OF_PROBABILITIES = ("log", *_GUARDS)
_LIMITS = {"Clamp": ("_saved_min", "_saved_max"), "Hardtanh": ("_saved_min_val", "_saved_max_val")}
_SATURATED = 0.02  # a probability within this of 0 or 1 has a sigmoid slope below 8 % of its best


def view_loss(loss: Tensor, graph: Graph | None, output: Tensor | None, target: Tensor | None) -> LossView:
    """Describe ``loss``; call it before the backward pass frees the graph.

    Args:
        loss: the scalar the user would call backward on.
        graph: its graph, None where backward leads nowhere.
        output: the network's (main) output, where known.
        target: what the network should put out, where known.

    Returns:
        What was seen; fields that could not be observed are None.
    """
    view = LossView(value=float(loss.detach()), requires_grad=graph is not None)
    if output is not None:
        view = replace(view, output=moments(output, _batch(output)), output_shape=tuple(output.shape))
    if target is not None:
        view = _with_target(view, target)
    if graph is None or graph.root is None:
        return view
    weights = (crossed_by(vertex) for vertex in graph.vertices if vertex.kind == "attention")
    view = replace(view, crossed=next((one.shape for one in weights if one is not None), None))
    return _from_graph(view, graph, output, target)


def _from_graph(view: LossView, graph: Graph, output: Tensor | None, target: Tensor | None) -> LossView:
    nodes = [vertex for vertex in graph.vertices if vertex.kind == "loss"]
    wide = broadcast(graph, None if target is None else tuple(target.shape))
    if not nodes:
        return replace(
            _by_hand(replace(view, broadcast=wide), graph.root, output, target), parts=_normalized_twice(graph)
        )
    if len(nodes) > 1:
        readings = [read_loss(node) for node in nodes]
        parts = tuple((one.kind, one.reads.op if one.reads is not None else "") for one in readings)
        view = replace(view, target=view.target or _largest_target(readings))
        return replace(view, terms=len(nodes), broadcast=wide, parts=parts, **_fed(_feeding(graph.root)))
    reading = read_loss(nodes[0])
    seen = reading.target if reading.target is not None else target
    view = replace(view, kind=reading.kind, broadcast=wide, normalized_axis=reading.axis, **_fed(reading.reads))
    reduction = getattr(reading.vertex.node, "_saved_reduction", None)
    view = replace(view, reduction=_REDUCTIONS.get(int(reduction)) if reduction is not None else None)
    view = replace(view, reordered=reordered(reading.vertex))
    if reading.target is not None:
        view = _with_target(view, reading.target)
    if reading.saved is not None:
        view = replace(view, output_saturated=_saturated(reading), classes=_classes(reading))
    if seen is None or graph.root is None:
        return view
    if wide is not None:
        return replace(view, floor=constant_loss(reading.kind, seen))
    floor = floor_of(reading, view.value, graph.root, seen)
    if floor is None and reading.kind == "cross_entropy":
        floor = smoothed_floor(graph.root, reading.vertex, seen, view.value)
    return replace(view, floor=floor)


def _largest_target(readings: list[Reading]) -> Moments | None:
    """Of the terms that compare predictions with numbers."""
    targets = [
        one.target for one in readings if one.kind in DISTANCES and one.target is not None and one.target.numel()
    ]
    seen = [moments(target.detach(), _batch(target)) for target in targets]
    return max(seen, key=lambda one: one.rms, default=None)


def _by_hand(view: LossView, root: Vertex | None, output: Tensor | None, target: Tensor | None) -> LossView:
    """A loss without a node of its own: made of plain ops, or cross-entropy against probabilities."""
    feeding = _feeding(root)
    view = replace(view, **_fed(feeding))
    if feeding is not None and feeding.op == "log_softmax" and target is not None and feeding.shape == target.shape:
        floor = soft_floor(view.value, feeding, target)
        return replace(
            view, kind="cross_entropy", floor=floor, normalized_axis=softmax_axis(feeding), **_fed(_site_below(feeding))
        )
    given = divergence(root)
    if given is not None and given.op != "log_softmax":
        return replace(view, kind="kl_div", **_fed(given))
    guess = floor_by_value(view.value, output, target)
    if guess is None:
        return view
    if feeding is not None and _after(feeding, output):
        view = replace(view, feeding=None)
    return replace(view, kind=guess[0], reduction=guess[1], floor=guess[2])


def _normalized_twice(graph: Graph) -> tuple[tuple[str, str], ...]:
    """Logarithms of a softmax that are taken of what is one already, as by ``Categorical(logits=probabilities)``."""
    logarithms = [vertex for vertex in graph.vertices if vertex.op in ("log_softmax", "logsumexp")]
    below = ((vertex, _site_below(vertex)) for vertex in logarithms)
    given = [one for vertex, one in below if one is not None and one.op == "softmax"]
    return tuple(("log_softmax", one.op) for one in given[:1])


def _after(vertex: Vertex, output: Tensor | None) -> bool:
    """Does it compute with the network's output?  Then it is the loss's own, such as the relu of a hinge."""
    return output is not None and output.grad_fn is not None and vertex.number > output.grad_fn._sequence_nr()


def read_loss(vertex: Vertex) -> Reading:
    """Kind of a loss node and what it reads; LogSoftmax below a negative log likelihood is one cross-entropy."""
    kind, reads = vertex.op, _site_below(vertex)
    axis = _normalized_axis(reads)
    saved = target = None
    if readable(vertex):
        saved = getattr(vertex.node, "_saved_self", None)
        target = getattr(vertex.node, "_saved_target", None)
    if kind == "nll" and reads is not None and reads.op == "log_softmax":
        kind, reads = "cross_entropy", _site_below(reads)
    return Reading(vertex, kind, _past_guards(_before_joint(reads)), saved, target, axis)


def _before_joint(vertex: Vertex | None) -> Vertex | None:
    """Of several tensors put together, the op that made each of them, where it is the same: the steps of a loop."""
    if vertex is None or vertex.op not in ("stack", "cat"):
        return vertex
    made = [_shown(one) for one in vertex.below]
    return made[0] if len({one.op for one in made if one is not None}) == 1 and None not in made else vertex


def _past_guards(vertex: Vertex | None) -> Vertex | None:
    """The softmax or sigmoid whose output was kept away from 0 and 1 by limits or a small constant; else what it is."""
    below = _past(vertex, _GUARDS)
    return below if below is not None and below.op in ("softmax", "sigmoid") else vertex


def _normalized_axis(vertex: Vertex | None) -> int | None:
    """Of the softmax whose output this is, or its logarithm, kept away from zero or not."""
    vertex = _past(vertex, _OF_PROBABILITIES)
    return None if vertex is None else softmax_axis(vertex)


def _past(vertex: Vertex | None, ops: tuple[str, ...]) -> Vertex | None:
    """The first op from here down that is none of these, or reads several things."""
    while vertex is not None and vertex.op in ops and len(vertex.below) == 1:
        vertex = _site_below(vertex)
    return vertex


def _site_below(vertex: Vertex) -> Vertex | None:
    """The op whose output this one reads, past views and dropout-free plumbing."""
    return _shown(vertex.below[0]) if vertex.below else None


def _shown(vertex: Vertex | None) -> Vertex | None:
    """The vertex, or the first below it that is not hidden."""
    while vertex is not None and vertex.hidden:
        vertex = vertex.below[0] if vertex.below else None
    return vertex


def _feeding(root: Vertex | None) -> Vertex | None:
    """For a loss written by hand: the first op below the reductions that is no plain arithmetic."""
    while root is not None and (root.hidden or root.op in (*_THROUGH, "pow", "abs", "log", "square")):
        root = root.below[0] if root.below else None
    return root


def _fed(vertex: Vertex | None) -> dict[str, Any]:
    return {} if vertex is None else {"feeding": vertex.op, "limits": _limits(vertex)}


def _limits(vertex: Vertex) -> tuple[float, float] | None:
    """Of an op that is given limits; those that are tensors may differ from place to place."""
    low, high = (getattr(vertex.node, name, None) for name in _LIMITS.get(vertex.stem, ("", "")))
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    return float(low), float(high)


def _with_target(view: LossView, target: Tensor) -> LossView:
    target = target.detach()
    known = replace(view, target_shape=tuple(target.shape))
    if not target.is_floating_point() or target.numel() == 0:
        return known
    low, high = float(target.min()), float(target.max())
    return replace(known, target=moments(target, _batch(target)), target_range=(low, high))


def _batch(tensor: Tensor) -> int | None:
    return tensor.shape[0] if tensor.ndim else None


def _classes(reading: Reading) -> int | None:
    if reading.kind not in ("cross_entropy", "nll") or reading.saved is None:
        return None
    return reading.saved.shape[1] if reading.saved.ndim > 1 else reading.saved.shape[0]


def _saturated(reading: Reading) -> float | None:
    """Share of predicted probabilities so near 0 or 1 that a sigmoid before them passes nothing."""
    saved = reading.saved
    if saved is None or reading.reads is None or reading.reads.op not in ("sigmoid", "softmax"):
        return None
    near = (saved < _SATURATED) | (saved > 1 - _SATURATED)
    return float(near.float().mean())
