"""The gradient with respect to a recurrent layer's *state*, by stepping the layer's own cell.

A fused kernel returns no gradient for its inner states.  Where stepping the cells gives the kernel's own outputs (one
direction, no packing, no projection, no dropout between layers), the same gradients can be fed to the stepped copy, and
dL/dh_t (with dL/dc_t for an LSTM; of all layers together) read off at every step.  dL/dh_t over t is the direct sign of
vanishing through time; the gradient with respect to the input carries the factor of the input weights besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_LONGEST = 1024  # a Python loop over more steps than this would cost more than the probe
_CLOSE = 1e-3  # how near the stepped outputs must come to the kernel's, relative to their size

State = tuple[Tensor, ...]


@dataclass(slots=True)
class Kernel:
    """One call of a fused layer: what went in, what came out, and the gradients that arrived at its outputs."""

    module: nn.RNNBase
    inputs: Tensor
    initial: list[State] | None  # of each layer
    outputs: Tensor | None = None
    gradients: dict[int, Tensor] = field(default_factory=dict)  # 0: outputs, then the last states

    @classmethod
    def of(cls, module: nn.RNNBase, inputs: Tensor, initial: object) -> Kernel | None:
        """The call, if its cells can be stepped exactly."""
        random = module.dropout > 0 and module.training and module.num_layers > 1
        plain = not (module.bidirectional or module.proj_size or random)
        axis = 1 if module.batch_first else 0
        if not plain or inputs.ndim != 3 or inputs.shape[axis] > _LONGEST:
            return None
        given = (initial,) if isinstance(initial, Tensor) else initial
        states = [s.detach().unbind(0) for s in given] if isinstance(given, tuple) else None
        return cls(module, inputs.detach(), None if states is None else list(zip(*states, strict=True)))

    def watch(self, output: tuple[Tensor, Tensor | State]) -> None:
        """Keep the outputs and ask for the gradients that arrive at them."""
        last = output[1] if isinstance(output[1], tuple) else (output[1],)
        self.outputs = output[0].detach()
        for position, tensor in enumerate((output[0], *last)):
            if tensor.requires_grad:
                tensor.register_hook(self._keeper(position))

    def _keeper(self, position: int) -> Callable[[Tensor | None], None]:
        def keep(gradient: Tensor | None) -> None:
            if gradient is not None:  # nothing read this output
                self.gradients[position] = gradient.detach()

        return keep


def state_norms(kernel: Kernel) -> list[float] | None:
    """||(dL/dh_t, dL/dc_t)||_2 for every step, first step first; None where stepping is not exact.

    Args:
        kernel: a call whose backward pass has run.

    Returns:
        One float64 norm per time step.
    """
    if kernel.outputs is None or not kernel.gradients:
        return None
    with torch.enable_grad():
        states = _step_through(kernel)
        outputs = torch.stack([layers[-1][0] for layers in states])
        wanted = _time_first(kernel, kernel.outputs)
        size = float(wanted.abs().max())
        if not (math.isfinite(size) and torch.allclose(outputs, wanted, rtol=_CLOSE, atol=_CLOSE * size)):
            return None
        total = _reread(kernel, outputs, states[-1])
        flat = [tensor for layers in states for state in layers for tensor in state]
        gradients = torch.autograd.grad(total, flat, allow_unused=True)
    return _by_step(gradients, len(states))


def _time_first(kernel: Kernel, tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1) if kernel.module.batch_first else tensor


def _step_through(kernel: Kernel) -> list[list[State]]:
    """The states of all layers after every step, with a graph through all of them."""
    module = kernel.module
    weights = [w.detach() for w in module._flat_weights if w is not None]
    each = len(weights) // module.num_layers
    cells = [_cell(module, weights[i * each : (i + 1) * each]) for i in range(module.num_layers)]
    inputs = _time_first(kernel, kernel.inputs)
    zero = inputs.new_zeros(inputs.shape[1], module.hidden_size)
    count = 2 if isinstance(module, nn.LSTM) else 1
    initial = kernel.initial or [(zero,) * count] * module.num_layers
    layers: list[State] = [tuple(part.detach().requires_grad_() for part in state) for state in initial]
    steps = []
    for x in inputs:
        below, states = x, []
        for cell, state in zip(cells, layers, strict=True):
            states.append(cell(below, state))
            below = states[-1][0]
        layers = states
        steps.append(layers)
    return steps


def _cell(module: nn.RNNBase, weights: list[Tensor]) -> Callable[[Tensor, State], State]:
    """One step of one layer, on copies of its weights."""
    if isinstance(module, nn.LSTM):
        return lambda x, state: torch.lstm_cell(x, list(state), *weights)
    if isinstance(module, nn.GRU):
        return lambda x, state: (torch.gru_cell(x, state[0], *weights),)
    step = torch.rnn_relu_cell if module.mode == "RNN_RELU" else torch.rnn_tanh_cell
    return lambda x, state: (step(x, state[0], *weights),)


def _reread(kernel: Kernel, outputs: Tensor, last: list[State]) -> Tensor:
    """A scalar whose gradients at outputs and last states are those that arrived at the kernel's."""
    total = outputs.new_zeros(())
    if 0 in kernel.gradients:
        total = total + (outputs * _time_first(kernel, kernel.gradients[0])).sum()
    for position, parts in enumerate(zip(*last, strict=True), start=1):  # h of every layer, then c
        if position in kernel.gradients:
            total = total + (torch.stack(parts) * kernel.gradients[position]).sum()
    return total


def _by_step(gradients: tuple[Tensor | None, ...], steps: int) -> list[float]:
    """Joint norm of all state tensors of each step."""
    parts = len(gradients) // steps
    norms = []
    for step in range(steps):
        present = [g.double().reshape(-1) for g in gradients[step * parts : (step + 1) * parts] if g is not None]
        norms.append(float(torch.linalg.vector_norm(torch.cat(present))) if present else 0.0)
    return norms
