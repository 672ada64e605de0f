"""Recurrent nets, attention and transformers: sites and the gradient over time against float64 autograd."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from oracle import check_modules, close, double, ln, site, watch, watch_all
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import unvanish
from unvanish.types import TimeProfile

pytestmark = pytest.mark.usefixtures("both_readings")

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Reader(nn.Module):
    """Reads the last output of a recurrent layer, from raw numbers or from an embedding."""

    def __init__(self, cell: str, *, first: bool = True, both: bool = False, layers: int = 1, words: int = 0) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 3) if words else None
        self.rnn = CELLS[cell](3, 5, num_layers=layers, batch_first=first, bidirectional=both)
        self.head = nn.Linear(10 if both else 5, 2)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        self.x = x if self.words is None else self.words(x)
        out, _ = self.rnn(self.x)
        return self.head(out[:, -1] if self.first else out[-1])


def expected_norms(model: nn.Module, x: Tensor, axis: int) -> list[float]:
    """ln ||dL/dx_t|| for each t by autograd.grad in float64."""
    twin = double(model)
    wide = x.double().requires_grad_() if x.is_floating_point() else x
    loss = twin(wide).square().sum()
    (gradient,) = torch.autograd.grad(loss, [twin.x])
    return [ln(step) for step in gradient.movedim(axis, 0)]


def profile(times: tuple[TimeProfile, ...], name: str) -> TimeProfile:
    assert [t.name for t in times] == [name]
    return times[0]


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize(("first", "both", "layers"), [(True, False, 1), (False, False, 1), (True, True, 2)])
@pytest.mark.parametrize("words", [0, 7])
def test_gradient_over_time_of_fused_layers(cell: str, first: bool, both: bool, layers: int, words: int) -> None:
    model = Reader(cell, first=first, both=both, layers=layers, words=words)
    shape = (4, 9) if first else (9, 4)
    x = torch.randint(words, shape) if words else torch.randn(*shape, 3)
    sites, probe = watch_all(model, lambda m: m(x).square().sum(), 4)
    times = profile(probe.times.profiles(sites), "rnn")
    assert times.op == cell
    assert len(times.log_grads) == 9
    for measured, expected in zip(times.log_grads, expected_norms(model, x, 1 if first else 0), strict=True):
        close(measured, expected, 1e-3)
    assert times.injected == pytest.approx(1 / 9)  # the loss reads the last step only
    assert times.padded == 0


def test_gradient_over_time_by_finite_differences() -> None:
    model, x = Reader("lstm").double(), torch.randn(2, 4, 3, dtype=torch.float64)
    sites, probe = watch_all(model, lambda m: m(x).square().sum(), 2)
    logs = profile(probe.times.profiles(sites), "rnn").log_grads
    step = 1e-6
    for t in range(4):
        total = 0.0
        for i in range(2):
            for k in range(3):
                moved = torch.zeros_like(x)
                moved[i, t, k] = step
                with torch.no_grad():
                    slope = (model(x + moved).square().sum() - model(x - moved).square().sum()) / (2 * step)
                total += float(slope) ** 2
        close(logs[t], 0.5 * math.log(total), 1e-5)


def test_the_probe_does_not_change_what_a_recurrent_layer_learns() -> None:
    model, x = Reader("gru"), torch.randn(4, 6, 3)
    model(x).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    watch(model, lambda m: m(x).square().sum(), 4)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))
    assert not x.requires_grad


def test_packed_sequences() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            _, (last, _) = self.rnn(pack_padded_sequence(x, torch.tensor([6, 4, 2]), batch_first=True))
            return last[0]

    model, x = Packed(), torch.randn(3, 6, 3)
    sites, probe = watch_all(model, lambda m: m(x).square().sum(), 3)
    wide = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(double(model)(wide).square().sum(), [wide])
    times = profile(probe.times.profiles(sites), "rnn")
    for t, measured in enumerate(times.log_grads):
        close(measured, ln(gradient[:, t]), 1e-3)


def test_padding_at_the_end_is_seen_as_zero_gradient() -> None:
    class Third(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, 3]

    model, x = Third(), torch.randn(2, 7, 3)
    sites, probe = watch_all(model, lambda m: m(x).square().sum(), 2)
    times = profile(probe.times.profiles(sites), "rnn")
    assert times.padded == 3
    assert times.log_grads[-3:] == (-math.inf,) * 3


def test_a_layer_called_twice_has_a_profile_that_is_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.rnn(x)[0])[0][:, -1]

    model, x = Twice(), torch.randn(2, 5, 3)
    sites, probe = watch_all(model, lambda m: m(x).square().sum(), 2)
    times = profile(probe.times.profiles(sites), "rnn")
    wide = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(double(model)(wide).square().sum(), [wide])
    for t, measured in enumerate(times.log_grads):
        close(measured, ln(gradient[:, t]), 1e-3)


class Led(nn.Module):
    """Leads a recurrent layer through a sequence some steps at a time, and hands the state on by itself."""

    def __init__(self, cell: str, steps: int, *, mixed: bool = False, every: bool = False) -> None:
        super().__init__()
        self.rnn, self.head = CELLS[cell](3, 5, batch_first=True), nn.Linear(5, 2)
        self.mix = nn.Linear(5, 5) if mixed else None
        self.steps, self.every = steps, every

    def forward(self, x: Tensor) -> Tensor:
        self.x, state, read = x, None, []
        for part in x.split(self.steps, dim=1):
            out, state = self.rnn(part, state)
            if self.mix is not None:
                state = self.mix(state).tanh()
            read.append(out[:, -1])
        return self.head(sum(read) if self.every else read[-1])


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize("steps", [1, 2, 12])
@pytest.mark.parametrize("every", [False, True])
def test_calls_that_hand_the_state_on_are_one_sequence(cell: str, steps: int, every: bool) -> None:
    model, x = Led(cell, steps, every=every), torch.randn(2, 12, 3)
    sites, probe = watch_all(model, lambda m: m(x).square().sum(), 2)
    times = profile(probe.times.profiles(sites), "rnn")
    for measured, expected in zip(times.log_grads, expected_norms(model, x, 1), strict=True):
        close(measured, expected, 1e-3)
    assert times.injected == pytest.approx((12 // steps if every else 1) / 12)
    assert len(times.log_state_grads) == 12
    if not every:  # by the same weights in one call
        whole = Led(cell, 12)
        whole.load_state_dict(model.state_dict())
        once, other = watch_all(whole, lambda m: m(x).square().sum(), 2)
        expected_states = profile(other.times.profiles(once), "rnn").log_state_grads
        assert times.log_state_grads == pytest.approx(expected_states, abs=1e-3)


def test_a_state_that_is_changed_between_two_calls_leads_on() -> None:
    model, x = Led("gru", 1, mixed=True), torch.randn(2, 6, 3)
    sites, probe = watch_all(model, lambda m: m(x).square().sum(), 2)
    found = next(t for t in probe.times.profiles(sites) if t.name == "rnn")
    for measured, expected in zip(found.log_grads, expected_norms(model, x, 1), strict=True):
        close(measured, expected, 1e-3)


def test_two_sequences_through_one_layer_are_two() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            start = torch.zeros(1, len(x), 5), torch.zeros(1, len(x), 5)
            return self.rnn(x, start)[0][:, -1] - self.rnn(x.flip(1), start)[0][:, -1]

    model, x = Siamese(), torch.randn(2, 7, 3)
    sites, probe = watch_all(model, lambda m: m(x).square().sum(), 2)
    assert len(profile(probe.times.profiles(sites), "rnn").log_grads) == 7


def test_a_sequence_given_by_keyword_is_said_not_to_be_observed() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(input=x)[0][:, -1])

    batch = torch.randn(4, 12, 3), torch.randn(4, 2)
    flow = unvanish.diagnose(Named(), nn.MSELoss(), [batch] * 2, steps=1).flow
    assert "rnn (lstm): gradient over time" in flow.unobserved
    assert not any(log == -math.inf for t in flow.times for log in t.log_grads)


def test_all_that_is_read_of_a_layer_counts() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            self.out, (self.last, _) = self.rnn(x)
            return self.out.sum(1) * 0.1 + self.last[0]

    model, x = Both(), torch.randn(4, 6, 3)
    sites = watch(model, lambda m: m(x).square().sum(), 4)
    twin = double(model)
    loss = twin(x.double()).square().sum()
    expected = torch.autograd.grad(loss, [twin.out, twin.last])
    layers = [s for s in sites if s.kind == "recurrent"]  # one node where there is a fused kernel
    if layers:
        close(layers[-1].log_grad_out, ln(torch.cat([part.reshape(-1) for part in expected])), 1e-3)


def _keep(kept: dict[str, Tensor], name: str, _module: nn.Module, _args: object, out: Tensor) -> None:
    kept[name] = out


def test_samples_behind_time_are_told_apart_as_samples() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    alike = torch.randn(8, 1, 8).expand(8, 4, 8).contiguous()  # time is a multiple of the number of samples
    other = torch.randn(8, 4, 8)
    for x in (alike, other):
        first = [s for s in watch(layer, lambda m, x=x: m(x).square().sum(), 4) if s.forward is not None]  # type: ignore[misc]
        kept: dict[str, Tensor] = {}
        for name in ("norm1", "linear1", "norm2"):
            keep = partial(_keep, kept, name)
            layer.get_submodule(name).register_forward_hook(keep)
        layer(x)
        for name, out in kept.items():
            measured = next(s for s in first if s.name == name).forward
            assert measured is not None
            expected = out.detach().double().std(dim=1, correction=0).square().mean().sqrt()
            assert measured.batch_std == pytest.approx(float(expected), abs=1e-5)


class CellLoop(nn.Module):
    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.cell = nn.RNNCell(3, 4)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(len(x), 4), self.cell
        self.kept = []
        for t in range(x.shape[1]):
            u = F.linear(h, c.weight_hh, c.bias_hh)
            h = torch.tanh(F.linear(x[:, t], c.weight_ih, c.bias_ih) + u) if self.by_hand else c(x[:, t], h)
            self.kept.append(u if self.by_hand else h)
        return h


@pytest.mark.parametrize("by_hand", [True, False])
def test_loops_over_cells(by_hand: bool) -> None:
    model, x = CellLoop(by_hand), torch.randn(3, 8, 3)
    twin = double(model)
    gradients = torch.autograd.grad(twin(x.double()).square().sum(), twin.kept)
    if not by_hand:  # the pre-activation's gradient, from that of the state
        gradients = tuple(g * (1 - h.detach() ** 2) for g, h in zip(gradients, twin.kept, strict=True))
    sites, probe = watch_all(model, lambda m: m(x).square().sum(), 3)
    times = probe.times.profiles(sites)
    assert times, [(s.name, s.op, s.parameter, s.depth) for s in sites]
    assert all(t.op == "loop" for t in times)
    for measured, expected in zip(times[0].log_grads, map(ln, gradients), strict=True):
        close(measured, expected, 1e-3)


def test_lstm_cell_loop_has_a_profile() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return state[0]

    model, x = Loop(), torch.randn(3, 8, 3)
    sites, probe = watch_all(model, lambda m: m(x).square().sum(), 3)
    assert [len(t.log_grads) for t in probe.times.profiles(sites)] == [8]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_scaled_dot_product_attention() -> None:
    model, x = Attending(), torch.randn(2, 5, 8)
    sites = check_modules(model, lambda m: m(x).square().sum(), lambda m: m(x.double()).square().sum(), 1e-3)
    assert any(s.kind == "attention" for s in sites)
    assert {s.name for s in sites if s.kind == "linear"} == {"q", "k", "v", "out"}


def test_multihead_attention() -> None:
    model, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 5, 8)
    sites = watch(model, lambda m: m(x, x, x)[0].square().sum(), 2)
    assert any(s.kind == "attention" for s in sites)
    twin = double(model)
    out = twin(x.double(), x.double(), x.double())[0]
    last = [s for s in sites if s.parameter is not None and s.parameter.startswith("out_proj")][-1]
    close(last.log_grad_out, ln(2 * out))
    assert {s.parameter for s in sites if s.kind == "linear"} >= {"in_proj_weight", "out_proj.weight"}


def test_transformer_encoder_layer_in_training() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)).train()
    x = torch.randn(4, 6, 3)
    sites = check_modules(model, lambda m: m(x).square().sum(), lambda m: m(x.double()).square().sum(), 1e-3)
    kinds = {s.kind for s in sites if s.name.startswith("1")}
    assert kinds >= {"linear", "attention", "merge", "normalization", "activation"}
    assert site(sites, "1.norm1").normalized_count == 8
    assert {site(sites, f"1.linear{i}").kind for i in (1, 2)} == {"linear"}
