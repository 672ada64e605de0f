"""Which layers get a norm: those whose activation another layer reads, and that have none yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch import nn

from unvanish.torch.normalize.layers import Kind, Layer, features_of
from unvanish.torch.normalize.report import LeftOut
from unvanish.torch.wiring import Op, Wiring

_MAPS = ("linear", "convolution", "transposed_convolution")


@dataclass(frozen=True, slots=True)
class Place:
    """A layer that gets a norm: its name, and the shape of its output in the traced pass."""

    name: str
    layer: Layer
    shape: tuple[int, ...]
    ops: tuple[int, ...]


def places(model: nn.Module, wiring: Wiring, kind: Kind) -> tuple[list[Place], list[LeftOut]]:
    """Every linear layer and convolution that was called: with a norm to come, or the reason why not."""
    calls: dict[str, list[Op]] = {}
    for op in wiring.layers():
        if op.kind in _MAPS:
            calls.setdefault(op.module, []).append(op)
    found: list[Place] = []
    left: list[LeftOut] = []
    for name, ops in calls.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, get_args(Layer)):
            kinds = ", ".join(sorted({op.name for op in ops}))
            left.append(LeftOut(name or type(model).__name__, f"calls {kinds} itself: there is no layer to add to"))
            continue
        reason = _reason(layer, ops, wiring, kind)
        if reason is None:
            found.append(Place(name, layer, ops[0].shape, tuple(op.index for op in ops)))
        else:
            left.append(LeftOut(name, reason))
    return found, left


def _reason(layer: Layer, ops: list[Op], wiring: Wiring, kind: Kind) -> str | None:
    """Why this layer gets no norm."""
    axes = 2 if isinstance(layer, nn.Linear) else layer.weight.ndim
    if not layer.weight.requires_grad:
        return "frozen"
    if isinstance(getattr(layer, "norm", None), nn.Module):
        return "has a norm of its own"
    if hasattr(layer, "norm"):
        return "has something else called `norm`"
    if any(len(op.shape) < axes for op in ops):
        return "its input has no axis of samples"
    if len({len(op.shape) for op in ops}) > 1:
        return "called with inputs of different numbers of axes"
    if kind == "batch" and len(ops) > 1:
        return f"called {len(ops)} times: one set of batch statistics cannot serve them all (layer or rms can)"
    if kind != "batch" and features_of(layer) == 1:
        return "has one feature: there is nothing to normalise over"
    return next((reason for op in ops if (reason := _call_reason(op, wiring)) is not None), None)


def _call_reason(op: Op, wiring: Wiring) -> str | None:
    activation = wiring.activation_after(op.index)
    if activation is None:
        return "no activation follows it alone"
    if activation.module == op.module:
        return "its activation is part of the layer"
    between = [other for other in wiring.following(op.index) if other.index < activation.index]
    if any(other.kind == "normalization" for other in between):
        return "a norm follows it already"
    if _normalised(activation, wiring):
        return "a norm follows its activation already"
    if any(_comes_from_norm(wiring.ops[source], wiring) for source in op.inputs if source >= 0):
        return "its input comes from a norm already"
    if not _reaches_layer(activation, wiring):
        return "its activation is the model's output"
    return None


def _normalised(activation: Op, wiring: Wiring) -> bool:
    """Is there a norm behind the activation, before anything else that computes?"""
    for op in wiring.following(activation.index):
        if op.kind == "normalization":
            return True
        if op.kind not in ("view", "pool", "dropout"):
            return False
    return False


def _comes_from_norm(op: Op, wiring: Wiring) -> bool:
    while op.kind in ("view", "pool", "dropout") and op.inputs and op.inputs[0] >= 0:
        op = wiring.ops[op.inputs[0]]
    return op.kind == "normalization"


def _reaches_layer(op: Op, wiring: Wiring) -> bool:
    """Does another layer compute with it, wherever?"""
    layers = {layer.index for layer in wiring.layers()}
    waiting, seen = [op.index], {op.index}
    while waiting:
        for reader in wiring.readers(waiting.pop()):
            if reader in layers:
                return True
            if reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    return False


def unbroken_depth(wiring: Wiring, normalised: set[int]) -> int:
    """How many normalised layers follow each other on the shortest way: a residual connection is a way round."""
    depth: list[int] = []
    for op in wiring.ops:
        before = [depth[source] if source >= 0 else 0 for source in op.inputs] or [0]
        depth.append((min(before) if op.kind == "merge" else max(before)) + (op.index in normalised))
    return max(depth, default=0)
