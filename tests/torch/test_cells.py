"""dL/dh_t by stepping the cell, against a loop over nn.*Cell modules in float64 with retained states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unvanish.torch.probe.cells import Kernel, state_norms

KINDS = [
    pytest.param(nn.LSTM, nn.LSTMCell, {}, id="lstm"),
    pytest.param(nn.GRU, nn.GRUCell, {}, id="gru"),
    pytest.param(nn.RNN, nn.RNNCell, {"nonlinearity": "tanh"}, id="tanh"),
    pytest.param(nn.RNN, nn.RNNCell, {"nonlinearity": "relu"}, id="relu"),
]


def oracle(layer: nn.RNNBase, kind: type[nn.RNNCellBase], options: dict, x: torch.Tensor, read: str) -> list[float]:
    """Step nn cells with the layer's weights, keep every state, and differentiate the loss directly."""
    cells, carries = [], []
    for k in range(layer.num_layers):
        cell = kind(layer.input_size if k == 0 else layer.hidden_size, layer.hidden_size, **options).double()
        with torch.no_grad():
            for name, parameter in cell.named_parameters():
                parameter.copy_(getattr(layer, f"{name}_l{k}").double())
        state = torch.zeros(x.shape[1], layer.hidden_size, dtype=torch.float64, requires_grad=True)
        cells.append(cell)
        carries.append((state, state.clone()) if isinstance(cell, nn.LSTMCell) else state)
    steps = []
    for step in x.double():
        below = step
        for k, cell in enumerate(cells):
            carries[k] = cell(below, carries[k])
            below = carries[k][0] if isinstance(carries[k], tuple) else carries[k]
        steps.append([part for c in carries for part in (c if isinstance(c, tuple) else (c,))])
    top = -2 if isinstance(cells[0], nn.LSTMCell) else -1
    outputs = torch.stack([parts[top] for parts in steps])
    last = torch.stack(steps[-1][::2] if top == -2 else steps[-1])
    loss = {"all": outputs.square().mean(), "last output": outputs[-1].square().sum(), "last state": last.pow(2).sum()}
    norms = []
    for group in steps:
        found = torch.autograd.grad(loss[read], group, retain_graph=True, allow_unused=True)
        norms.append(float(sum(g.square().sum() for g in found if g is not None)) ** 0.5)
    return norms


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("read", ["all", "last output", "last state"])
@pytest.mark.parametrize(("kind", "cell", "options"), KINDS)
def test_equals_the_gradients_of_a_loop_over_cells(kind, cell, options, read, batch_first, layers):
    torch.manual_seed(1)
    layer = kind(5, 6, layers, batch_first=batch_first, **options)
    x = torch.randn(9, 3, 5)
    given = x.transpose(0, 1) if batch_first else x
    kernel = Kernel.of(layer, given, None)
    output = layer(given)
    assert kernel is not None
    kernel.watch(output)
    outputs = output[0].transpose(0, 1) if batch_first else output[0]
    last = output[1][0] if isinstance(output[1], tuple) else output[1]
    loss = {
        "all": outputs.square().mean(),
        "last output": outputs[-1].square().sum(),
        "last state": last.square().sum(),
    }
    loss[read].backward()
    assert state_norms(kernel) == pytest.approx(oracle(layer, cell, options, x, read), rel=1e-4)


@pytest.mark.parametrize("options", [{"num_layers": 2, "dropout": 0.5}, {"bidirectional": True}, {"proj_size": 2}])
def test_what_cannot_be_stepped_exactly_is_not_observed(options):
    layer = nn.LSTM(5, 6, **options)
    assert Kernel.of(layer, torch.randn(9, 3, 5), None) is None


def test_dropout_does_not_matter_where_it_is_not_active():
    assert Kernel.of(nn.LSTM(5, 6, 2, dropout=0.5).eval(), torch.randn(9, 3, 5), None) is not None
    with pytest.warns(UserWarning, match="dropout"):
        single = nn.LSTM(5, 6, 1, dropout=0.5)
    assert Kernel.of(single, torch.randn(9, 3, 5), None) is not None


@pytest.mark.parametrize("layers", [1, 2])
def test_an_initial_state_is_respected(layers):
    torch.manual_seed(2)
    layer, x, h = nn.GRU(4, 5, layers), torch.randn(6, 2, 4), torch.randn(layers, 2, 5)
    kernel = Kernel.of(layer, x, h)
    output = layer(x, h)
    assert kernel is not None
    kernel.watch(output)
    output[0][-1].sum().backward()
    norms = state_norms(kernel)
    assert norms is not None
    assert len(norms) == 6
    wrong = Kernel.of(layer, x, None)
    assert wrong is not None
    wrong.outputs, wrong.gradients = kernel.outputs, kernel.gradients
    assert state_norms(wrong) is None
