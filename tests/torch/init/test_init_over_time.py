"""Signs of life of recurrent layers against cells written by hand and looped over, with dense Jacobians, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unvanish.torch.init import chrono_, initialize_
from unvanish.torch.init.over_time import signs_over_time
from unvanish.torch.init.vitals import vital_signs
from unvanish.torch.wiring import trace

STEPS, SAMPLES, FEATURES, WIDTH = 7, 12, 3, 5
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]


def cell_of(net: nn.RNNBase, suffix: str) -> Cell:
    """One step of one layer and direction, as PyTorch's manual has it; the output is the state's first part."""
    w, v = (net.get_parameter(f"weight_{kind}_{suffix}").detach() for kind in ("ih", "hh"))
    b, d = (
        net.get_parameter(f"bias_{kind}_{suffix}").detach() if net.bias else torch.zeros(len(w), dtype=w.dtype)
        for kind in ("ih", "hh")
    )

    def step(x: Tensor, state: State) -> State:
        h = state[0]
        by_input, by_state = x @ w.T + b, h @ v.T + d
        if isinstance(net, nn.LSTM):
            i, f, g, o = (by_input + by_state).chunk(4, dim=-1)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            return (h @ net.get_parameter(f"weight_hr_{suffix}").detach().T if net.proj_size else h), c
        if isinstance(net, nn.GRU):
            (r, z, n), (r_, z_, n_) = by_input.chunk(3, dim=-1), by_state.chunk(3, dim=-1)
            z = (z + z_).sigmoid()
            return ((1 - z) * (n + (r + r_).sigmoid() * n_).tanh() + z * h,)
        u = by_input + by_state
        return (u.tanh() if net.nonlinearity == "tanh" else u.relu(),)

    return step


def loop(cell: Cell, x: Tensor, state: State) -> tuple[Tensor, State]:
    outputs = []
    for step in x:
        state = cell(step, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def jacobian_norm(cell: Cell, x: Tensor, start: State, since: int) -> float:
    """Of the last output, by the state after ``since`` steps: dense, sample by sample."""
    _, state = loop(cell, x[:since], start)
    square = 0.0
    for sample in range(x.shape[1]):
        own = x[since:, sample]
        jacobians = torch.func.jacrev(lambda s, own=own: loop(cell, own, s)[0][-1])(tuple(s[sample] for s in state))
        square += sum(float(j.square().sum()) for j in jacobians)
    return math.sqrt(square)


def slow_signs(cell: Cell, x: Tensor, start: State) -> tuple[float, float, float]:
    """Forward, backward and separation of one layer and direction; ``x`` has shape (steps, samples, features)."""
    last = loop(cell, x, start)[0][-1]
    backward = math.log(jacobian_norm(cell, x, start, 1) / jacobian_norm(cell, x, start, len(x) - 1))
    spread = x - x.mean((0, 1))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x) * spread.square().mean().sqrt()
    at_first = x.clone()
    at_first[0] += noise[0]
    change = [(loop(cell, changed, start)[0][-1] - last).norm() for changed in (at_first, x + noise)]
    forward = math.log(change[0] / (change[1] / math.sqrt(len(x))))
    return forward, backward, float((last - last.mean(0)).square().mean().sqrt() / last.square().mean().sqrt())


def slow(net: nn.RNNBase, x: Tensor) -> list[tuple[float, float, float]]:
    """Of all layers and directions, in order."""
    found = []
    for layer in range(net.num_layers):
        outputs = []
        for suffix in (f"l{layer}", f"l{layer}_reverse")[: 1 + net.bidirectional]:
            cell, reverse = cell_of(net, suffix), suffix.endswith("reverse")
            own = x.flip(0) if reverse else x
            h = torch.zeros(x.shape[1], net.proj_size or net.hidden_size, dtype=x.dtype)
            start = (h, torch.zeros(x.shape[1], net.hidden_size, dtype=x.dtype)) if isinstance(net, nn.LSTM) else (h,)
            found.append(slow_signs(cell, own, start))
            result = loop(cell, own, start)[0]
            outputs.append(result.flip(0) if reverse else result)
        x = torch.cat(outputs, -1)
    return found


def check(found: list[Any], expected: list[tuple[float, float, float]]) -> None:
    assert len(found) == len(expected)
    for signs, (forward, backward, separation) in zip(found, expected, strict=True):
        assert signs.forward == pytest.approx(forward, abs=1e-9)
        assert signs.separation == pytest.approx(separation, rel=1e-9)
        assert signs.backward == pytest.approx(backward, abs=1e-9)
        assert signs.rank is None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.RNN, {}),
        (nn.RNN, {"nonlinearity": "relu"}),
        (nn.LSTM, {}),
        (nn.GRU, {}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}),
        (nn.GRU, {"num_layers": 3, "bias": False}),
        (nn.RNN, {"bidirectional": True, "batch_first": True}),
        (nn.LSTM, {"batch_first": True, "num_layers": 2}),
        (nn.LSTM, {"proj_size": 4, "bias": False}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_against_the_unrolled_loop(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = kind(FEATURES, WIDTH, **options).double()
    x = torch.randn(STEPS, SAMPLES, FEATURES, dtype=torch.float64) + 0.5
    given = x.transpose(0, 1) if net.batch_first else x
    check(list(signs_over_time(net, given)), slow(net, x))


class Stepwise(nn.Module):
    """Calls a cell, or a whole module, step by step."""

    def __init__(self, cell: nn.Module, *, forgets: bool = False) -> None:
        super().__init__()
        self.cell, self.forgets = cell, forgets

    def forward(self, x: Tensor) -> Tensor:
        state, h = None, x
        for step in x:
            if isinstance(self.cell, nn.RNNBase):
                out, state = self.cell(step[None], state)
                h = out[0]
            else:
                state = self.cell(step, state)
                h = state[0] if isinstance(state, tuple) else state
            state = None if self.forgets else state
        return h


@pytest.mark.parametrize("kind", [(nn.LSTM, nn.LSTMCell), (nn.GRU, nn.GRUCell), (nn.RNN, nn.RNNCell)])
def test_cells_and_single_steps_are_one_sequence(kind: tuple[type[nn.RNNBase], type[nn.RNNCellBase]]) -> None:
    whole, cell = kind[0](FEATURES, WIDTH).double(), kind[1](FEATURES, WIDTH).double()
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in whole.state_dict().items()})
    x = torch.randn(STEPS, SAMPLES, FEATURES, dtype=torch.float64)
    for net in (whole, Stepwise(whole), Stepwise(cell)):
        check(list(signs_over_time(net, x)), slow(whole, x))


def test_calls_that_do_not_hand_on_their_state_are_no_sequence() -> None:
    assert not list(signs_over_time(Stepwise(nn.GRUCell(FEATURES, WIDTH), forgets=True), torch.randn(9, 4, FEATURES)))


def test_packed_sequences_count_at_full_length() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(FEATURES, WIDTH, bidirectional=True).double()

        def forward(self, x: Tensor) -> Tensor:
            lengths = [STEPS] * 5 + [3] * (SAMPLES - 5)
            return self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths))[0].data

    net, x = Packed(), torch.randn(STEPS, SAMPLES, FEATURES, dtype=torch.float64)
    check(list(signs_over_time(net, x)), slow(net.rnn, x[:, :5]))


def test_first_states_are_the_models_own() -> None:
    net = nn.RNN(FEATURES, WIDTH).double()
    x, h = (torch.randn(n, SAMPLES, m, dtype=torch.float64) for n, m in ((STEPS, FEATURES), (1, WIDTH)))
    check(list(signs_over_time(net, (x, h))), [slow_signs(cell_of(net, "l0"), x, (h[0],))])


@pytest.mark.parametrize("batch_first", [False, True])
def test_guessed_sequences_have_time_where_the_layer_reads_it(batch_first: bool) -> None:
    assert initialize_(nn.GRU(3, 4, batch_first=batch_first)).after.over == "over 12 steps of gru"


def test_one_step_is_no_time() -> None:
    assert not list(signs_over_time(nn.LSTM(3, 4), torch.randn(1, 2, 3)))


def test_a_default_lstm_over_a_hundred_steps_is_refused_and_chrono_is_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 100, 8)
    net = nn.Sequential(nn.LSTM(8, 32, batch_first=True))
    before = vital_signs(net, x, trace(net, x))
    assert before.over == "over 100 steps of 0"
    assert before.backward is not None
    assert before.backward < -30
    assert any("over 100 steps of 0, the gradient backward shrinks" in text for text in before.failures())
    with pytest.warns(UserWarning, match="over 100 steps of 0, the gradient backward shrinks"):
        kept = initialize_(net, x, keep=["0"])
    assert not kept.ok
    chrono_(net, 100)
    assert not vital_signs(net, x, trace(net, x)).failures()
    done = initialize_(net, x)
    assert done.ok
    assert str(done).endswith("ok")


@pytest.mark.parametrize(
    ("kind", "options"), [(nn.LSTM, {}), (nn.GRU, {}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"})], ids=str
)
@pytest.mark.parametrize("steps", [12, 100, 600])
def test_recurrent_layers_come_out_alive(kind: type[nn.RNNBase], options: dict[str, Any], steps: int) -> None:
    torch.manual_seed(0)
    net = kind(8, 32, 2, bidirectional=True, **options)
    done = initialize_(net, torch.randn(steps, 32, 8))
    assert done.ok, str(done)
    assert done.after.over
    assert done.before.failures() or steps == 12


def test_gradient_that_grows_over_time_is_refused() -> None:
    net = nn.RNN(8, 32, nonlinearity="relu")
    with torch.no_grad():
        net.weight_hh_l0.copy_(1.2 * torch.eye(32))
    x = torch.randn(60, 16, 8)
    assert any("gradient backward grows" in text for text in vital_signs(net, x, trace(net, x)).failures())


def test_nothing_of_the_model_changes() -> None:
    net = nn.LSTM(3, 4, 2, dropout=0.5)
    x = torch.randn(5, 6, 3)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    state, weights = torch.get_rng_state(), {name: p.clone() for name, p in net.named_parameters()}
    list(signs_over_time(net, x))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, weights[name]) for name, p in net.named_parameters())
    assert all(bool((p.grad == 1).all()) for p in net.parameters())


def test_time_is_not_cut_where_it_comes_first() -> None:
    net = nn.Sequential(nn.RNN(8, 16), Last(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    x = torch.randn(50, 6, 8)
    seen: list[tuple[int, ...]] = []
    net[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    vital_signs(net, x, trace(net, x))
    assert set(seen) == {x.shape}


class Last(nn.Module):
    def forward(self, both: tuple[Tensor, Any]) -> Tensor:
        return both[0][-1]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_inputs_of_any_scale_and_offset(kind: type[nn.RNNBase]) -> None:
    """The first layer is scaled to the data, and its bias takes the mean out: both nets see the same."""
    x = torch.randn(20, 32, 8, dtype=torch.float64)
    outputs = []
    for scale, offset in ((1.0, 0.0), (1e3, 5e3)):
        net = kind(8, 16).double()
        given = scale * x + offset
        assert initialize_(net, given, generator=torch.Generator().manual_seed(0)).ok
        outputs.append(net(given)[0])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0.03)  # the means of x are not quite zero


def test_a_plain_rnn_loses_half_a_nat_whatever_the_length() -> None:
    for steps in (30, 300):
        net = nn.RNN(8, 64, 2).double()
        initialize_(net, torch.randn(steps, 16, 8, dtype=torch.float64))
        first, second = signs_over_time(net, torch.randn(steps, 16, 8, dtype=torch.float64))
        assert first.backward == pytest.approx(-0.5, abs=0.15)
        assert second.backward == pytest.approx(-0.5, abs=0.3)


@pytest.mark.parametrize("batch_first", [False, True])
def test_single_steps_open_the_gates_for_the_whole_sequence(batch_first: bool) -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            out, state = self.rnn(x[:, :5] if batch_first else x[:5])
            for _ in range(25):
                step = out[:, -1:, :3] if batch_first else out[-1:, :, :3]
                out, state = self.rnn(step, state)
            return out

    done = initialize_(Decoder(), torch.randn(6, 6, 3))
    assert done.actions[0].detail == "for 30 steps"
    assert done.after.over == "over 30 steps of rnn"
