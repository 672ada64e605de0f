"""Recurrent layers: orthogonal hidden weights, and gates that stay open as long as the sequence lasts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.init.checks import check_generator, check_model, check_positive
from unvanish.torch.init.fill import Input
from unvanish.torch.init.matrices import length_keeping, semi_orthogonal, uniform_, wide
from unvanish.torch.init.weights import Keep, Weight, protected, recurrent_weights
from unvanish.torch.wiring import Op, Wiring

Recurrent = nn.RNNBase | nn.RNNCellBase


def chrono_(model: nn.Module, steps: int, *, keep: Keep = (), generator: torch.Generator | None = None) -> None:
    r"""Set the gate biases of every LSTM and GRU so that memories last up to ``steps`` steps, in place.

    .. math:: b_f = \ln U(1, T - 1),\quad b_i = -b_f \text{ (LSTM)};\qquad b_z = \ln U(1, T - 1) \text{ (GRU)}

    A forget gate sigma(b) forgets 1 / (1 + e^b) per step, so its memory lasts about e^b steps. A forget bias of 1 is
    not enough beyond some ten steps.

    Args:
        model: with nn.LSTM, nn.LSTMCell, nn.GRU or nn.GRUCell in it.
        steps: T, the length of the sequences.
        keep: names, modules or parameters to leave alone.
        generator: source of randomness; torch's global one where not given.

    Raises:
        ValueError: no gated layer with biases that may be changed, fewer than three steps, or an argument that is none.

    Example:
        >>> lstm = nn.LSTM(3, 4)
        >>> chrono_(lstm, 100)
        >>> forget = lstm.bias_ih_l0[4:8] + lstm.bias_hh_l0[4:8]
        >>> bool(((forget >= 0) & (forget <= 4.6)).all())
        True

    Source: Tallec and Ollivier 2018 (arXiv:1804.11188), section 2.
    """
    check_model("chrono_", model)
    check_generator("chrono_", generator)
    check_positive("chrono_", "steps", steps, "the length of the sequences", "Give it as x.shape[1] or x.shape[0].")
    if steps < 3:
        raise ValueError(
            f"chrono_: sequences of {steps} steps need no long memory. Expected steps >= 3, the length of the "
            "sequences. Leave the gates as they are, or give the right length."
        )
    kept = protected(model, keep)
    layers = [module for module in model.modules() if isinstance(module, Recurrent)]
    if not sum(open_gates_(layer, steps, kept, generator) for layer in layers):
        raise ValueError(
            f"chrono_: no gate to set in {type(model).__name__}. Expected an LSTM or GRU with trainable biases. "
            "Build it with bias=True, unfreeze it, or use orthogonal_ for a plain RNN."
        )


@torch.no_grad()
def open_gates_(layer: Recurrent, steps: int, kept: set[int], generator: torch.Generator | None) -> int:
    """Set the gate biases of one layer; returns how many bias vectors were set."""
    gated = isinstance(layer, nn.LSTM | nn.LSTMCell), isinstance(layer, nn.GRU | nn.GRUCell)
    if not any(gated):
        return 0
    width, done = layer.hidden_size, 0
    for name, bias in layer.named_parameters(recurse=False):
        if not name.startswith("bias_ih") or id(bias) in kept:
            continue
        other = layer.get_parameter(name.replace("_ih", "_hh"))
        if id(other) in kept:
            continue
        half = steps / 2 - 1
        times = torch.empty_like(bias[:width])
        uniform_(times, half, generator)
        times = (times + half + 1).log()
        # rows: LSTM input, forget, cell, output; GRU reset, update, new
        bias[width : 2 * width], other[width : 2 * width] = times, 0
        if gated[0]:
            bias[:width], other[:width] = -times, 0
        done += 1
    return done


@torch.no_grad()
def recurrent_(
    layer: Recurrent, steps: int, given: Input, kept: set[int], generator: torch.Generator | None
) -> list[str]:
    """Hidden weights orthogonal per gate, input weights that suit the input and the steps, biases zero, gates open.

    The first layer's bias takes the input's mean out. Returns the names of the weights that were set, within the layer.
    """
    names, means = [], []
    for weight in recurrent_weights(layer, ""):
        if id(layer.get_parameter(weight.name)) in kept:
            continue
        weight.tensor.copy_(_matrix(layer, weight, steps, given, generator))
        names.append(weight.name)
        if weight.bias is None or id(layer.get_parameter(weight.name.replace("weight", "bias"))) in kept:
            continue
        weight.bias.zero_()
        if weight.role == "plain" and _reads_input(weight):
            means.append((weight.bias, wide(weight.tensor) @ given.mean))
    if steps >= 3:
        open_gates_(layer, steps, kept, generator)
    for bias, answer in means:
        bias.sub_(answer.to(bias))
    return list(dict.fromkeys(names))


def _reads_input(weight: Weight) -> bool:
    """Whether it reads the module's own input: the first layer's do, in both directions, and a cell's."""
    return weight.name.startswith("weight_ih_l0") or weight.name == "weight_ih"


def _matrix(layer: Recurrent, weight: Weight, steps: int, given: Input, generator: torch.Generator | None) -> Tensor:
    rows, columns = weight.layout.outputs, weight.layout.inputs
    gated = isinstance(layer, nn.LSTM | nn.LSTMCell | nn.GRU | nn.GRUCell)
    if weight.role == "recurrent" and not gated and layer.nonlinearity == "relu":
        return torch.eye(rows).to(weight.tensor)  # Le et al. 2015 (arXiv:1504.00941)
    matrix = semi_orthogonal(1, rows, columns, like=weight.tensor, generator=generator)[0]
    if weight.role == "recurrent":
        return matrix
    first = _reads_input(weight)
    scale = given.gain if first else 1.0
    return matrix * length_keeping(rows, columns) * scale * (1.0 if gated else _share(layer, first, max(1, steps)))


def _share(layer: Recurrent, first: bool, steps: int) -> float:
    r"""Size of the input weights of a plain RNN, whose state adds its inputs up.

    With ReLU the sum over T steps gets variance 1. With tanh, inputs of variance w^2 make the state's variance
    q_t = w^2 t, each step then has slope sqrt(E[tanh'^2]) = 1 - q_t, and the gradient through all of them loses
    w^2 T^2 / 2 nats: w = 1 / T loses half a nat at any length, where 1 / sqrt(T) would lose T / 2, less as tanh
    saturates (6 nats at 100 steps, measured). The layer above reads states of variance 1 / 2T on average.
    """
    if layer.nonlinearity == "relu":
        return 1 / math.sqrt(steps)
    return 1 / steps if first else math.sqrt(2 / steps)


def sequence_length(op: Op, args: Any, wiring: Wiring) -> int:
    """Steps that a recurrent layer makes: of its padded or packed input, or the number of calls of a cell.

    A layer called again with the state it returned goes on with the same sequence.
    """
    calls = [other for other in wiring.ops if other.module == op.module and other.kind == "recurrent"]
    if op.name.endswith("cell"):
        return len(calls)
    if "batch_first" not in op.arguments:
        return len(args[1])  # packed: as many batch sizes as steps
    handed_on = all(before.index in after.inputs for before, after in pairwise(calls))
    return sum(_padded_length(call) for call in (calls if handed_on else [op]))


def _padded_length(op: Op) -> int:
    return op.shape[1 if op.arguments["batch_first"] else 0]
