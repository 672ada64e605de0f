"""Omega between layers: from the output of one linear map to the output of the next.

The ratio needs u = J^T W^T v: W^T v comes from the one sweep over the graph; J, all that lies between two layers
(activation, normalisation, dropout, pooling), is applied by the graph's own nodes, so nothing is evaluated again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from unvanish.torch.regularize.ratios import GradientRule, Part, deviation, lengths, outer, times
from unvanish.torch.regularize.recorder import LayerCall

_ELEMENTWISE = frozenset(
    f"{name}Backward0"
    for name in ("Tanh", "Sigmoid", "Relu", "LeakyRelu", "Elu", "Gelu", "Silu", "Mish", "Softplus", "Hardtanh")
)


@dataclass(frozen=True, slots=True)
class LayerStep:
    """From the output of ``before`` to the output of ``call``, with no other layer between."""

    before: LayerCall
    call: LayerCall
    into: GradientEdge


def layer_steps(calls: list[LayerCall]) -> tuple[list[LayerStep], list[LayerCall], bool]:
    """The transitions of a pass, the layers that read several others, and whether the steps are a loop over time.

    Where a weight is applied to what it made itself, these are the transitions, as in a loop over time; else a
    transition leads from a layer to the one layer that reads it.
    """
    made = {call.out.node: call for call in calls}
    loop, plain, merged = [], [], []
    for call in calls:
        sources = [made[node] for node in _sources(call.into, made)] if call.into is not None else []
        own = [source for source in sources if _identity(source.weight) == _identity(call.weight)]
        if len(own) == 1 and call.into is not None:
            loop.append(LayerStep(own[0], call, call.into))
        elif len(sources) == 1 and call.into is not None:
            plain.append(LayerStep(sources[0], call, call.into))
        elif sources:
            merged.append(call)
    return (loop, [], True) if loop else (plain, merged, False)


def _identity(weight: Tensor) -> int:
    return id(weight._base) if weight._is_view() else id(weight)


def _sources(into: GradientEdge, made: dict[Node, LayerCall]) -> list[Node]:
    """The layers whose outputs reach this input with no other layer between."""
    found: list[Node] = []
    seen = {into.node}
    waiting = [into.node]
    while waiting:
        node = waiting.pop()
        if node in made:
            found.append(node)
            continue
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)
    return found


def layer_parts(steps: list[LayerStep], arrived: dict[GradientEdge, Tensor | None]) -> list[Part]:
    """Value and gradient of the transitions.

    Args:
        steps: the transitions.
        arrived: the loss's gradient at the edges ``into`` and ``out`` of the layers.
    """
    reached = [
        _Reached(step, cotangent, passed)
        for step in steps
        if (cotangent := arrived[step.call.out]) is not None and (passed := arrived[step.into]) is not None
    ]
    groups: dict[tuple[object, ...], list[_Reached]] = {}
    for transition in reached:
        groups.setdefault((len(_rows(transition.cotangent)), transition.cotangent.device), []).append(transition)
    return [_part(group) for group in groups.values()]


@dataclass(frozen=True, slots=True)
class _Reached:
    """A transition that a gradient reaches: v = dC/da at the layer's output and W^T v at its input."""

    step: LayerStep
    cotangent: Tensor
    passed: Tensor


def _part(group: list[_Reached]) -> Part:
    """u = J^T p with p = W^T v; then dOmega/dW, the gradient of <W^T v, J w>, is that of the layer fed with J w.

    Both are linear in v, which may be as small as 1e-38: one number, as J may mix samples, brings it near 1.
    """
    before = torch.stack([lengths(_rows(reached.cotangent)) for reached in group])
    largest = before.amax(1, keepdim=True)
    scale = torch.where(largest == 0, 1.0, largest).reciprocal()
    scales = scale.flatten().unbind()
    ways = [
        _between(reached.step, (reached.passed * factor).to(reached.passed.dtype))
        for reached, factor in zip(group, scales, strict=True)
    ]
    value, slope = deviation(torch.stack([lengths(_rows(pulled)) for pulled, _ in ways]), before * scale)
    gradients = []
    for reached, (pulled, push), rows, factor in zip(group, ways, slope.unbind(), scales, strict=True):
        pushed = push((_rows(pulled) * rows.to(pulled.dtype)).reshape(pulled.shape))
        gradients.append((reached.step.call.weight, _weight_rule(reached, pushed, factor)))
    return Part(value, tuple(gradients), (before != 0).sum())


def _between(step: LayerStep, start: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """J^T ``start`` for what lies between two layers, and w -> J w."""
    node = step.into.node.next_functions[0][0]  # behind the layer's own view of its input
    if node is not None and node.name() in _ELEMENTWISE and node.next_functions[0][0] is step.before.out.node:
        diagonal: Callable[[Tensor], Tensor] = node  # type: ignore[assignment]  # nodes can be called
        return diagonal(start), diagonal  # the same both ways
    start.requires_grad_()
    (end,) = torch.autograd.grad(step.into, step.before.out, start, create_graph=True)
    return end.detach(), lambda w: torch.autograd.grad(end, start, w)[0]


def _rows(tensor: Tensor) -> Tensor:
    """One row for each sample."""
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(0)


def _weight_rule(reached: _Reached, inputs: Tensor, scale: Tensor) -> GradientRule:
    """Gradient of <function(inputs, W), scale * v> by W."""
    call, cotangent = reached.step.call, reached.cotangent
    if call.function is torch.nn.functional.linear:
        return outer(cotangent, inputs, scale)
    with torch.enable_grad():
        weight = call.weight.detach().requires_grad_()
        output = call.function(inputs, weight, *call.rest, **call.named)
        return times(torch.autograd.grad(output, weight, (cotangent * scale).to(cotangent.dtype))[0])
