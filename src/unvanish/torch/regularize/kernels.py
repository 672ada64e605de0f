"""Omega of fused recurrent layers: nn.RNN, nn.LSTM, nn.GRU, stacked and in both directions.

A fused kernel returns the outputs of its last layer only.  The layers below are run once more; the states of a
gated cell and the gradients that arrive at them come from stepping the cell over the same data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.regularize.cells import State, cell_part, step
from unvanish.torch.regularize.ratios import Part
from unvanish.torch.regularize.recorder import KernelCall
from unvanish.torch.regularize.sweep import in_range, simple_part, slopes, sweep


def kernel_parts(call: KernelCall, arrived: list[Tensor | None]) -> Iterator[Part]:
    """Value and gradient of every layer and direction, the last layer first.

    Args:
        call: what the kernel was given and what it returned.
        arrived: the loss's gradient at the outputs and at each last state.
    """
    inputs = _inputs_of_layers(call)
    outputs, *last = arrived
    injected = torch.zeros_like(inputs[-1]) if outputs is None else _time_first(call, outputs)
    for layer in range(len(inputs) - 2, -1, -1):
        below = torch.zeros_like(inputs[layer])
        for direction, arriving in enumerate(injected.chunk(call.directions, -1)):
            index = layer * call.directions + direction
            ends = [None if gradient is None else gradient[index] for gradient in last]
            states = inputs[layer + 1].chunk(call.directions, -1)[direction]
            fed, states, share = (_ordered(tensor, direction) for tensor in (inputs[layer], states, arriving))
            part, passed = _one(call, index, fed, states, share, ends, wanted=layer > 0)
            if passed is not None:
                below = below + _ordered(passed, direction)
            yield part
        injected = below


def _time_first(call: KernelCall, tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1) if call.batch_first else tensor


def _ordered(sequence: Tensor, direction: int) -> Tensor:
    return sequence.flip(0) if direction else sequence


def _weights(call: KernelCall, index: int) -> State:
    return call.weights[index * call.per_cell : (index + 1) * call.per_cell]


def _inputs_of_layers(call: KernelCall) -> list[Tensor]:
    """The input of every layer and, as the last, the output of the last one."""
    layers = len(call.weights) // (call.per_cell * call.directions)
    found = [_time_first(call, call.inputs)]
    kernel: Any = getattr(torch, call.name)
    with torch.no_grad():
        for layer in range(layers - 1):
            cells = slice(layer * call.directions, (layer + 1) * call.directions)
            first = tuple(part[cells] for part in call.initial)
            state = first if call.name == "lstm" else first[0]
            own = [w for i in range(cells.start, cells.stop) for w in _weights(call, i)]
            biases = call.per_cell > 2
            found.append(kernel(found[-1], state, own, biases, 1, 0.0, False, call.directions > 1, False)[0])
    return [*found, _time_first(call, call.outputs)]


def _one(
    call: KernelCall,
    index: int,
    inputs: Tensor,
    outputs: Tensor,
    injected: Tensor,
    ends: list[Tensor | None],
    *,
    wanted: bool,
) -> tuple[Part, Tensor | None]:
    """One layer in one direction: its part and, where ``wanted``, the gradient with respect to its input."""
    weights = _weights(call, index)
    if ends[0] is not None:
        injected = torch.cat([injected[:-1], injected[-1:] + ends[0]])
    if not call.name.startswith("rnn"):
        initial = tuple(part[index] for part in call.initial)
        return _stepped(call.name, inputs, initial, weights, injected, ends[1:], wanted=wanted)
    slope = slopes(outputs, call.name)
    cotangents = sweep(weights[1], slope, injected)
    part = simple_part(weights[1], slope[:-1], in_range(cotangents, weights[1], slope, injected)[1:])
    return part, cotangents @ weights[0].detach() if wanted else None


def _stepped(
    name: str,
    inputs: Tensor,
    initial: State,
    weights: State,
    injected: Tensor,
    cell_end: list[Tensor | None],
    *,
    wanted: bool,
) -> tuple[Part, Tensor | None]:
    """A gated cell over the whole sequence, for its states and the gradients that arrive at them."""
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_(wanted)
        frozen = tuple(weight.detach() for weight in weights)
        state = tuple(part.requires_grad_() for part in initial)
        states: list[State] = []
        for x in inputs:
            state = tuple(part.view_as(part) for part in step(name, x, state, frozen))  # without c -> h in one step
            states.append(state)
        total = (torch.stack([state[0] for state in states]) * injected).sum()
        if cell_end and cell_end[0] is not None:
            total = total + (state[1] * cell_end[0]).sum()
        targets = [part for state in states for part in state] + ([inputs] if wanted else [])
        gradients = torch.autograd.grad(total, targets, allow_unused=True, materialize_grads=True)
    sequences = [torch.stack([state[i] for state in states]).detach() for i in range(len(initial))]
    arrived = [torch.stack(gradients[i : len(states) * len(initial) : len(initial)]) for i in range(len(initial))]
    before, after, later = (
        tuple(s[part] for s in group)
        for group, part in ((sequences, slice(None, -1)), (sequences, slice(1, None)), (arrived, slice(1, None)))
    )
    part = cell_part(name, inputs.detach()[1:], before, after, later, weights)
    return part, gradients[-1] if wanted else None
