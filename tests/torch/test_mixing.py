"""Samples that read one another: found where they do, by the definition (a Jacobian), and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.views.mixing import mixed_at

ROWS, TIME, WIDTH = 6, 5, 4


class Last(nn.Module):
    """A recurrent layer, of which the last state along an axis is classified."""

    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool, time: int = 1, **settings: Any) -> None:
        super().__init__()
        self.layer = kind(WIDTH, 8, batch_first=batch_first, **settings)
        self.head = nn.Linear(16 if settings.get("bidirectional") else 8, 3)
        self.time = time

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0].select(self.time, -1))


class States(nn.Module):
    """The last states of both directions, side by side or reshaped."""

    def __init__(self, reshaped: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.layer = nn.GRU(WIDTH, 8, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, 3)
        self.reshaped = reshaped

    def forward(self, x: Tensor) -> Tensor:
        states = self.layer(self.embed(x))[1]
        return self.out(states.reshape(len(x), -1) if self.reshaped else torch.cat(list(states), 1))


class Attending(nn.Module):
    """A Transformer's layer, and the mean over time."""

    def __init__(self, batch_first: bool, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.3, batch_first=batch_first)
        self.norm = nn.Identity() if norm is None else norm
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(x).mean(1)))


class TimeFirst(nn.Module):
    """The batch is turned before a layer that wants time first, and its last state is read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.transpose(0, 1))[0][-1])


def real() -> Tensor:
    return torch.randn(ROWS, TIME, WIDTH)


def tokens() -> Tensor:
    return torch.randint(20, (ROWS, TIME))


def found(model: nn.Module, x: Any, rows: int = ROWS) -> str | None:
    batch = x, torch.arange(rows) % 3
    return mixed_at(model, Objective(F.cross_entropy, None), batch)


def reads_others(model: nn.Module, x: Tensor) -> bool:
    """By autograd: has the output of a sample a derivative by the input of another?"""
    model.eval()
    x = x.clone().requires_grad_()
    rows = [torch.autograd.grad(row.square().sum(), x, retain_graph=True)[0] for row in model(x)]
    return any(bool(g[k].any()) for i, g in enumerate(rows) for k in range(len(x)) if k != i)


MIXED = {
    "lstm": (lambda: Last(nn.LSTM, batch_first=False), "layer"),
    "gru": (lambda: Last(nn.GRU, batch_first=False, num_layers=2), "layer"),
    "bidirectional": (lambda: Last(nn.RNN, batch_first=False, bidirectional=True), "layer"),
    "attention": (lambda: Attending(False), "layer.self_attn"),
}
APART = {
    "lstm": lambda: Last(nn.LSTM, batch_first=True),
    "bidirectional": lambda: Last(nn.GRU, batch_first=True, bidirectional=True),
    "attention": lambda: Attending(True),
    "turned": TimeFirst,
    "batch norm": lambda: Attending(True, nn.BatchNorm1d(WIDTH)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MIXED)
def test_a_layer_that_takes_the_batch_for_time_is_named(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    make, where = MIXED[name]
    model, x = make(), real()
    assert reads_others(model, x)
    name_found = found(model, x)
    assert name_found is not None
    assert name_found.startswith(where)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", APART)
def test_samples_that_are_apart_are_left_alone(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = APART[name](), real()
    assert not reads_others(model, x)
    assert found(model, x) is None


@pytest.mark.parametrize("seed", range(3))
def test_states_that_are_reshaped_go_to_other_samples(seed: int) -> None:
    torch.manual_seed(seed)
    assert found(States(reshaped=True), tokens()) == "out"
    assert found(States(reshaped=False), tokens()) is None


def test_time_first_data_and_targets_of_every_step_are_no_samples() -> None:
    model = nn.LSTM(WIDTH, 3)
    steps = (torch.randn(TIME, ROWS, WIDTH), torch.zeros(TIME, ROWS, 3))
    goal = Objective(lambda output, target: F.mse_loss(output[0], target), None)
    assert mixed_at(model, goal, steps) is None
    assert found(Last(nn.LSTM, batch_first=False, time=0), torch.randn(TIME, ROWS, WIDTH)) is None
    assert found(Last(nn.LSTM, batch_first=False, time=0), torch.randn(ROWS, ROWS, WIDTH)) is None  # which is which?


def test_normalisation_over_the_batch_mixes_on_purpose() -> None:
    model = Attending(True, nn.BatchNorm1d(WIDTH, track_running_stats=False))
    assert reads_others(model, real())
    assert found(model, real()) is None


class Stateful(nn.Module):
    """The state of the last batch is where the next begins."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(WIDTH, 8, batch_first=True), nn.Linear(8, 3)
        self.state: tuple[Tensor, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.layer(x, self.state)
        self.state = tuple(part.detach() for part in last)
        return self.head(states[:, -1])


def test_a_state_kept_from_batch_to_batch_is_no_mixing() -> None:
    assert found(Stateful(), real()) is None


class Neighbours(nn.Module):
    """A recurrent layer for each node of a graph, whose states its neighbours read; or scores of all pairs."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        self.layer, self.head, self.pairs = nn.GRU(WIDTH, 8, batch_first=True), nn.Linear(8, 3), pairs
        self.last = nn.LogSoftmax(-1)
        self.edges = (torch.rand(ROWS, ROWS) < 0.5).float()

    def forward(self, x: Tensor) -> Tensor:
        states = self.layer(x)[0][:, -1]
        return self.last(states @ states.T) if self.pairs else self.head(self.edges @ states)


class Statistic(nn.Module):
    """The spread of the batch beside what attention gives, as a discriminator reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(WIDTH + 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.layer(x, x, x)[0].mean(1)
        return self.head(torch.cat([seen, seen.std(0).mean().expand(len(x), 1)], 1))


class AmongSamples(nn.Module):
    """Attention from sample to sample, on one sequence that was made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.MultiheadAttention(WIDTH, 2), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean(1).unsqueeze(1)
        return self.head(self.layer(y, y, y)[0].squeeze(1))


class Packed(nn.Module):
    """The mean over time of padded states: the longest sample says how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(WIDTH, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        return self.head(states.mean(1))


@pytest.mark.parametrize("make", [lambda: Neighbours(False), lambda: Neighbours(True), Statistic, AmongSamples])
def test_what_reads_other_samples_on_purpose_is_left_alone(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make(), real()
    assert reads_others(model, x)
    assert found(model, x) is None


def test_the_longest_sample_of_a_packed_batch_is_no_mixing() -> None:
    assert found(Packed(), (real(), torch.tensor([5, 2, 3, 4, 1, 3]))) is None


def test_one_sequence_with_a_target_for_every_step_has_no_samples() -> None:
    class Steps(nn.LSTM):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)[0][:, 0]

    batch = torch.randn(ROWS, 1, WIDTH), torch.zeros(ROWS, 1)
    assert mixed_at(Steps(WIDTH, 1), Objective(F.mse_loss, None), batch) is None


def test_the_users_model_is_left_as_it_was() -> None:
    model, state = Attending(False), torch.get_rng_state()
    with torch.random.fork_rng():
        found(model, real())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_samples_tell_nothing() -> None:
    assert found(Last(nn.LSTM, batch_first=False), torch.ones(ROWS, TIME, WIDTH)) is None


def test_a_program_that_refuses_the_changed_batch_is_not_judged() -> None:
    class Strict(Last):
        def forward(self, x: Tensor) -> Tensor:
            if bool((x[0] == x[-1]).all()):
                raise RuntimeError("twice the same sample")
            return super().forward(x)

    assert found(Strict(nn.LSTM, batch_first=False), real()) is None
