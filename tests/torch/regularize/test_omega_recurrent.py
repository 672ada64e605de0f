"""Omega through time: fused layers, cells and loops against the definition and against each other."""

from __future__ import annotations

import pytest
import torch
from omega_oracle import cell_omega, central_differences, deep_omega
from torch import nn

from unvanish.torch.regularize import OmegaRegularizer

KINDS = ["tanh", "relu", "lstm", "gru"]


def layer_of(kind: str, *sizes: int, **options) -> nn.RNNBase:
    if kind in ("tanh", "relu"):
        return nn.RNN(*sizes, nonlinearity=kind, **options)
    return {"lstm": nn.LSTM, "gru": nn.GRU}[kind](*sizes, **options)


def cell_of(kind: str, layer: nn.RNNBase) -> nn.RNNCellBase:
    sizes = layer.input_size, layer.hidden_size
    made = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}.get(kind, nn.RNNCell)
    cell = made(*sizes, **({"nonlinearity": kind} if made is nn.RNNCell else {})).to(layer.weight_hh_l0)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            parameter.copy_(getattr(layer, f"{name}_l0"))
    return cell


def reading(outputs: torch.Tensor, read: str) -> torch.Tensor:
    return outputs[-1].square().sum() if read == "last" else (outputs * torch.linspace(1, 2, len(outputs)).view(
        -1, 1, 1)).sin().sum()  # fmt: skip


def fused(layer: nn.RNNBase, x: torch.Tensor, read: str) -> torch.Tensor:
    omega = OmegaRegularizer(layer)
    with omega.watch():
        outputs = layer(x)[0]
        loss = reading(outputs, read)
    return omega.penalty(loss)


def looped(cell: nn.RNNCellBase, x: torch.Tensor, read: str) -> torch.Tensor:
    omega = OmegaRegularizer(cell)
    zero = x.new_zeros(x.shape[1], cell.hidden_size)
    state = (zero, zero) if isinstance(cell, nn.LSTMCell) else zero
    with omega.watch():
        outputs = []
        for step in x:
            state = cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        loss = reading(torch.stack(outputs), read)
    return omega.penalty(loss)


def frozen_steps(kind: str, layer: nn.RNNBase, x: torch.Tensor, read: str) -> list:
    """(x, states before, cotangents after) of every transition, from leaves that cut the loop at each step."""
    cell = cell_of(kind, layer)
    zero = x.new_zeros(x.shape[1], layer.hidden_size)
    state = (zero, zero) if kind == "lstm" else (zero,)
    states = []
    for step in x:
        made = cell(step, state if kind == "lstm" else state[0])
        state = tuple(p.detach() for p in (made if isinstance(made, tuple) else (made,)))
        states.append(state)
    outputs = torch.stack([s[0] for s in states]).requires_grad_()
    (read_out,) = torch.autograd.grad(reading(outputs, read), outputs)
    later = tuple(torch.zeros_like(p) for p in state)
    steps = []
    for t in range(len(x) - 1, 0, -1):
        arrived = (later[0] + read_out[t], *later[1:])
        before = tuple(p.clone().requires_grad_() for p in states[t - 1])
        made = cell(x[t], before if kind == "lstm" else before[0])
        made = made if isinstance(made, tuple) else (made,)
        later = torch.autograd.grad(made, before, arrived)
        steps.append((x[t], states[t - 1], states[t], arrived))
    return steps


def by_definition(kind: str, layer: nn.RNNBase, steps: list) -> torch.Tensor:
    weights = [p for name, p in layer.named_parameters() if name.endswith("l0")]
    if kind in ("tanh", "relu"):
        slope = (lambda h: 1 - h**2) if kind == "tanh" else (lambda h: (h > 0).double())
        frozen = [(slope(before[0]), arrived[0] * slope(after[0])) for _, before, after, arrived in steps]
        return deep_omega([weights[1]] * len(frozen), frozen)
    if kind == "lstm":
        return cell_omega(torch.lstm_cell, [(x, b, v) for x, b, _, v in steps], weights)
    return cell_omega(lambda x, s, *w: (torch.gru_cell(x, s[0], *w),), [(x, b, v) for x, b, _, v in steps], weights)


@pytest.mark.parametrize("read", ["last", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_layers_and_loops_over_cells_equal_the_definition(kind, read):
    torch.manual_seed(0)
    layer = layer_of(kind, 3, 4).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    steps = frozen_steps(kind, layer, x, read)
    penalty = fused(layer, x, read)
    torch.testing.assert_close(penalty.detach(), by_definition(kind, layer, steps).detach(), rtol=1e-9, atol=1e-12)
    penalty.backward()
    cell = cell_of(kind, layer)
    loop = looped(cell, x, read)
    torch.testing.assert_close(loop.detach(), penalty.detach(), rtol=1e-9, atol=1e-12)
    loop.backward()
    for name, parameter in cell.named_parameters():
        whole = getattr(layer, f"{name}_l0")
        if kind in ("tanh", "relu") and name != "weight_hh":
            assert whole.grad is None
            assert parameter.grad is None
            continue
        expected = central_differences(lambda: by_definition(kind, layer, steps), whole)
        torch.testing.assert_close(whole.grad, expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(parameter.grad, whole.grad, rtol=1e-7, atol=1e-10)


class Loop(nn.Module):
    """A recurrence as papers write it: h = tanh(x U + h W), with a bare parameter."""

    def __init__(self, layer: nn.RNN) -> None:
        super().__init__()
        self.inner, self.bias = layer.weight_ih_l0, nn.Parameter((layer.bias_ih_l0 + layer.bias_hh_l0).detach())
        self.outer = layer.weight_hh_l0

    def forward(self, x, product):
        h = x.new_zeros(x.shape[1], len(self.bias))
        outputs = []
        for step in x:
            h = torch.tanh(step @ self.inner.T + self._recur(h, product) + self.bias)
            outputs.append(h)
        return torch.stack(outputs)

    def _recur(self, h, product):
        return {
            "matmul": lambda: h @ self.outer.T,
            "mm": lambda: torch.mm(h, self.outer.t()),
            "linear": lambda: nn.functional.linear(input=h, weight=self.outer),
        }[product]()


@pytest.mark.parametrize("product", ["matmul", "mm", "linear"])
def test_loops_by_hand_equal_the_fused_layer(product):
    torch.manual_seed(0)
    layer = nn.RNN(3, 4).double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    expected = fused(layer, x, "all")
    (wanted,) = torch.autograd.grad(expected, layer.weight_hh_l0)
    model = Loop(layer)
    omega = OmegaRegularizer(model)
    with omega.watch():
        loss = reading(model(x, product), "all")
    penalty = omega.penalty(loss)
    torch.testing.assert_close(penalty.detach(), expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(penalty, model.outer)[0], wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_layers_are_layers_one_after_the_other(kind):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    deep = layer_of(kind, 3, 4, num_layers=2, batch_first=True, bidirectional=True).double()
    parts = [layer_of(kind, size, 4, batch_first=True, bidirectional=True).double() for size in (3, 8)]
    with torch.no_grad():
        for index, part in enumerate(parts):
            for name, parameter in part.named_parameters():
                parameter.copy_(getattr(deep, name.replace("_l0", f"_l{index}")))
    values = []
    for run in (lambda: deep(x), lambda: parts[1](parts[0](x)[0])):
        omega = OmegaRegularizer(nn.ModuleList([deep, *parts]))
        with omega.watch():
            output, last = run()
            last = last[1] if isinstance(last, tuple) else last
            loss = output.sin().sum() + last[-2:].cos().sum()  # the top layer's last states, both directions
        values.append(omega.penalty(loss))
    torch.testing.assert_close(values[0].detach(), values[1].detach(), rtol=1e-8, atol=1e-11)
    for value in values:
        value.backward()
    for index, part in enumerate(parts):
        for name, parameter in part.named_parameters():
            twin = getattr(deep, name.replace("_l0", f"_l{index}"))
            assert (twin.grad is None) == (parameter.grad is None)
            if twin.grad is not None:
                torch.testing.assert_close(twin.grad, parameter.grad, rtol=1e-7, atol=1e-10)


def test_the_backward_direction_is_a_layer_on_the_reversed_sequence():
    torch.manual_seed(0)
    both, alone = nn.RNN(3, 4, bidirectional=True).double(), nn.RNN(3, 4).double()
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            parameter.copy_(getattr(both, f"{name}_reverse"))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    omega = OmegaRegularizer(both)
    with omega.watch():
        loss = reading(both(x)[0][..., 4:].flip(0), "all")  # the forward direction gets no gradient
    torch.testing.assert_close(omega.penalty(loss).detach(), fused(alone, x.flip(0), "all").detach())


def test_nn_rnn_is_followed_beyond_the_range_of_float32():
    torch.manual_seed(0)
    layer = nn.RNN(3, 8)
    layer.weight_hh_l0.data *= 0.3
    x = torch.randn(150, 4, 3)
    wide = nn.RNN(3, 8).double()
    wide.load_state_dict(layer.state_dict())
    narrow, exact = fused(layer, x, "last"), fused(wide, x.double(), "last")
    assert exact.item() > 80  # 149 steps, all of which shrink: unaided float32 sees the last 50 of them
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(narrow, layer.weight_hh_l0)[0].double(),
        torch.autograd.grad(exact, wide.weight_hh_l0)[0],
        rtol=1e-3,
        atol=1e-2,
    )


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's own remark
def test_what_cannot_be_measured_is_refused_or_said():
    layer = nn.RNN(3, 4, num_layers=2, dropout=0.5)
    with pytest.raises(ValueError, match=r"dropout 0\.5"):
        fused(layer, torch.randn(5, 2, 3), "last")
    fused(layer.eval(), torch.randn(5, 2, 3), "last")
    with pytest.raises(ValueError, match="projection"):
        fused(nn.LSTM(3, 4, proj_size=2), torch.randn(5, 2, 3), "last")
    plain = nn.GRU(3, 4)
    omega = OmegaRegularizer(plain)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 2, 3), [5, 3])
    with omega.watch():
        loss = plain(packed)[0].data.square().sum()
    with pytest.raises(ValueError, match="1 packed sequences"):
        omega.penalty(loss)


def test_unbatched_sequences_and_an_initial_state():
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4).double()
    x, start = torch.randn(5, 3, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    values = []
    for data, state in ((x, (start, start)), (x[:, None], (start[:, None], start[:, None]))):
        omega = OmegaRegularizer(layer)
        with omega.watch():
            loss = layer(data, state)[0].square().sum()
        values.append(omega.penalty(loss).item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)
