"""Recurrent layers: orthogonal hidden weights, and gates that stay open as long as the sequence lasts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.init.matrices import length_keeping, semi_orthogonal, uniform_
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
        ValueError: no gated layer with biases that may be changed, or fewer than three steps.

    Example:
        >>> lstm = nn.LSTM(3, 4)
        >>> chrono_(lstm, 100)
        >>> forget = lstm.bias_ih_l0[4:8] + lstm.bias_hh_l0[4:8]
        >>> bool(((forget >= 0) & (forget <= 4.6)).all())
        True

    Source: Tallec and Ollivier 2018 (arXiv:1804.11188), section 2.
    """
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
def recurrent_(layer: Recurrent, steps: int, kept: set[int], generator: torch.Generator | None) -> list[str]:
    """Hidden weights orthogonal per gate, input weights that sum to variance one over time, biases zero, gates open.

    Returns the names of the weights that were set, within the layer.
    """
    names = []
    for weight in recurrent_weights(layer, ""):
        if id(layer.get_parameter(weight.name)) in kept:
            continue
        weight.tensor.copy_(_matrix(layer, weight, steps, generator))
        if weight.bias is not None and id(layer.get_parameter(weight.name.replace("weight", "bias"))) not in kept:
            weight.bias.zero_()
        names.append(weight.name)
    if steps >= 3:
        open_gates_(layer, steps, kept, generator)
    return list(dict.fromkeys(names))


def _matrix(layer: Recurrent, weight: Weight, steps: int, generator: torch.Generator | None) -> Tensor:
    rows, columns = weight.layout.outputs, weight.layout.inputs
    gated = isinstance(layer, nn.LSTM | nn.LSTMCell | nn.GRU | nn.GRUCell)
    if weight.role == "recurrent" and not gated and layer.nonlinearity == "relu":
        return torch.eye(rows).to(weight.tensor)  # Le et al. 2015 (arXiv:1504.00941)
    matrix = semi_orthogonal(1, rows, columns, like=weight.tensor, generator=generator)[0]
    if weight.role == "recurrent":
        return matrix
    over_time = 1.0 if gated else 1 / math.sqrt(max(1, steps))  # a plain RNN adds its inputs up
    return matrix * length_keeping(rows, columns) * over_time


def sequence_length(op: Op, args: Any, wiring: Wiring) -> int:
    """Steps that a recurrent layer makes: of its padded or packed input, or the number of calls of a cell."""
    if op.name.endswith("cell"):
        return sum(other.module == op.module and other.kind == "recurrent" for other in wiring.ops)
    if isinstance(args[3], bool):  # padded; the last argument is batch_first, and a single sequence has no batch axis
        return int(args[0].shape[-2 if args[-1] or args[0].ndim == 2 else 0])
    return len(args[1])
