"""Omega of LSTM and GRU cells: the step's Jacobian by autograd, all steps as one batch.

The state of an LSTM is the pair (h, c).  States, inputs and cotangents are held constant, only the step's own
dependence on its weights counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from unvanish.torch.regularize.ratios import Part, deviation, lengths, times
from unvanish.torch.regularize.recorder import CellCall
from unvanish.torch.regularize.sweep import simple_part, slopes

State = tuple[Tensor, ...]
_CELLS: dict[str, Callable[..., Tensor | State]] = {
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
}


def step(name: str, inputs: Tensor, state: State, weights: State) -> State:
    """The next state of a cell called as torch's fused layers are: "lstm", "gru", "rnn_tanh", "rnn_relu"."""
    cell = _CELLS[name]
    result = cell(inputs, list(state) if name == "lstm" else state[0], *weights)
    return result if isinstance(result, tuple) else (result,)


def cell_part(name: str, inputs: Tensor, before: State, after: State, arrived: State, weights: State) -> Part:
    """Omega of steps of one cell.

    Args:
        name: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        inputs: (steps, samples, input features).
        before: the states that the steps start from, each (steps, samples, features).
        after: the states they lead to.
        arrived: the loss's gradient at ``after``.
        weights: w_ih, w_hh and the biases, if any.
    """
    if name.startswith("rnn"):
        return simple_part(weights[1], slopes(before[0], name), arrived[0] * slopes(after[0], name))
    joined = torch.cat(arrived, -1)
    size = lengths(joined)
    unit = (joined / torch.where(size == 0, 1.0, size)).to(joined.dtype)
    cotangents = unit.flatten(0, 1).split([part.shape[-1] for part in arrived], -1)
    with torch.enable_grad():
        leaves = tuple(weight.detach().requires_grad_() for weight in weights)
        states = tuple(part.flatten(0, 1).detach().requires_grad_() for part in before)
        results = step(name, inputs.flatten(0, 1), states, leaves)
        pulled = torch.cat(torch.autograd.grad(results, states, cotangents, create_graph=True), -1)
    end = pulled.detach()
    value, factors = deviation(lengths(end.unflatten(0, inputs.shape[:2])), (size != 0).to(size.dtype))
    direction = end * factors.flatten(0, 1).to(end.dtype)
    gradients = torch.autograd.grad(pulled, leaves, direction, allow_unused=True)
    known = tuple((w, times(g)) for w, g in zip(weights, gradients, strict=True) if g is not None)
    return Part(value, known, (size != 0).sum())


def loop_parts(calls: list[CellCall], arrived: dict[GradientEdge, Tensor | None]) -> Iterator[Part]:
    """Omega of cells called in a loop, the steps of one cell as one batch.

    Args:
        calls: the steps that count.
        arrived: the loss's gradient at their new states.
    """
    groups: dict[tuple[object, ...], list[CellCall]] = {}
    for call in calls:
        groups.setdefault((id(call.weights[1]), call.inputs.shape), []).append(call)
    for group in groups.values():
        gradients = [
            tuple(_or_zero(arrived[edge], part) for edge, part in zip(call.out, call.after, strict=True))
            for call in group
        ]
        before, after, got = (
            tuple(torch.stack(parts) for parts in zip(*states, strict=True))
            for states in ([c.before for c in group], [c.after for c in group], gradients)
        )
        inputs = torch.stack([call.inputs for call in group])
        yield cell_part(group[0].name.removesuffix("_cell"), inputs, before, after, got, group[0].weights)


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
