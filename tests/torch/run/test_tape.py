"""What made a loss, made again: the same loss and gradients, with any weights, and nothing of the program changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from unvanish.torch.run.recorder import Recorder
from unvanish.torch.run.replay import Played
from unvanish.torch.run.tape import Tape

Program = Callable[[nn.Module], Tensor]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    assert not _get_current_function_mode_stack()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.drop = nn.LSTM(6, 8, batch_first=True), nn.Dropout(0.3)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.drop(self.lstm(x)[0][:, -1])))


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 8), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = self.encode(x).chunk(2, dim=-1)
        drawn = torch.distributions.Normal(mean, spread.exp()).rsample()
        return self.decode(drawn), mean, spread


def by_hand(model: nn.Module) -> Tensor:
    given = F.one_hot(torch.arange(12) % 4, 4)
    return -(given * model(torch.randn(12, 5, 6)).log_softmax(-1)).sum(-1).mean()


def coded(model: nn.Module) -> Tensor:
    x = torch.rand(12, 6)
    out, mean, spread = model(x)
    return F.mse_loss(out, x) + 0.1 * (mean.square() + spread.exp() - spread - 1).sum()


def equation(model: nn.Module) -> Tensor:
    points = torch.rand(20, 2).requires_grad_()
    height = model(points)
    (slope,) = torch.autograd.grad(height, points, torch.ones_like(height), create_graph=True)
    return (slope[:, :1] + height).square().mean()


def adversarial(model: nn.Module) -> Tensor:
    points = torch.rand(20, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(model(points).sum(), points)
    return model((points + 0.1 * slope.sign()).detach()).square().mean()


def in_place(model: nn.Module) -> Tensor:
    held, made = torch.zeros(5, 3), model(torch.rand(5, 2))
    held[:, 1:2] = made
    other = made.clone().mul_(2)
    other += 1
    with torch.no_grad():
        size = other.abs().mean()
    return held.exp().sum() + (other / size).square().sum()


def half(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(torch.rand(5, 2)).float().square().mean()


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def attending() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2)


PROGRAMS: list[tuple[Callable[[], nn.Module], Program]] = [
    (Recurrent, by_hand),
    (Coder, coded),
    (small, equation),
    (small, adversarial),
    (small, in_place),
    (small, half),
    (attending, lambda model: model(torch.rand(3, 5, 6)).square().mean()),
]


def recorded(model: nn.Module, program: Program) -> tuple[Tensor, Tape | None]:
    recorder = Recorder()
    recorder.begin()
    loss = program(model)
    tape = recorder.tape(loss)
    recorder.close()
    return loss, tape


def drawn_alike(program: Program, model: nn.Module) -> Tensor:
    torch.manual_seed(7)
    return program(model)


@pytest.mark.parametrize(("make", "program"), PROGRAMS)
def test_a_tape_gives_the_programs_own_loss_and_gradients(make: Callable[[], nn.Module], program: Program) -> None:
    model = make()
    twin = deepcopy(model)
    torch.manual_seed(7)
    loss, tape = recorded(model, program)
    expected = drawn_alike(program, twin)
    assert torch.equal(loss, expected), "listening changes nothing"
    assert tape is not None
    played = tape.play(tape.leaves, same_random=True)
    assert torch.equal(played, expected)
    played.backward()
    expected.backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None, name
        assert torch.equal(p.grad, q.grad), name


@pytest.mark.parametrize(("make", "program"), PROGRAMS)
def test_with_other_weights_it_is_the_program_with_these_weights(
    make: Callable[[], nn.Module], program: Program
) -> None:
    model = make()
    torch.manual_seed(7)
    _, tape = recorded(model, program)
    assert tape is not None
    names = {id(p): name for name, p in model.named_parameters()}
    other = deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn_like(p))
    changed = dict(other.named_parameters())
    leaves = {slot: changed[names[id(leaf)]] if id(leaf) in names else leaf for slot, leaf in tape.leaves.items()}
    before = deepcopy(model.state_dict())
    assert tape.play(leaves, same_random=True).item() == pytest.approx(drawn_alike(program, other).item(), rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Straight(torch.autograd.Function):
    """Rounds, with the derivative of doing nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def straight(model: nn.Module) -> Tensor:
    return Straight.apply(3 * model(torch.rand(50, 2)) + 2).square().mean()


def seen(loss: Tensor, model: nn.Module) -> Any:
    norms = {id(p): float(p.grad.norm()) for p in model.parameters() if p.grad is not None}
    return SimpleNamespace(before=SimpleNamespace(loss=SimpleNamespace(value=loss.item())), norms=norms, kept={})


@pytest.mark.parametrize(("program", "faithful"), [(equation, True), (in_place, True), (straight, False)])
def test_what_cannot_be_heard_is_noticed_by_the_gradients(program: Program, faithful: bool) -> None:
    model = small()
    loss, tape = recorded(model, program)
    assert tape is not None
    loss.backward()
    state = torch.get_rng_state()
    assert Played(tape, seen(loss, model)).faithful() is faithful
    assert torch.equal(torch.get_rng_state(), state)


def test_a_weight_made_before_it_listened_cannot_be_played() -> None:
    raw = torch.randn(2, 3, requires_grad=True)
    made = raw.exp()
    assert recorded(small(), lambda model: (model(torch.rand(3, 2)) * made[0]).sum())[1] is None


def game(model: nn.Module) -> Tensor:
    chances = torch.distributions.Categorical(logits=model(x).expand(-1, 2))
    moves = chances.sample()
    gains = torch.tensor([float(move) for move in moves.tolist()])  # as a game outside of PyTorch would tell them
    return -(chances.log_prob(moves) * gains).mean()


def test_moves_that_python_has_seen_are_not_drawn_again() -> None:
    assert recorded(small(), game)[1] is None


def test_numbers_that_are_only_shown_are_no_moves() -> None:
    shown = []

    def program(model: nn.Module) -> Tensor:
        loss = (model(x) + torch.randn(30, 1)).square().mean()
        shown.append(loss.item())
        return loss

    assert recorded(small(), program)[1] is not None


def test_what_is_too_much_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unvanish.torch.run.recorder._MOST_CALLS", 3)
    assert recorded(small(), equation)[1] is None
    monkeypatch.setattr("unvanish.torch.run.recorder._MOST_CALLS", 1000)
    monkeypatch.setattr("unvanish.torch.run.recorder._MOST_BYTES", 10)
    assert recorded(small(), lambda model: model(x).sum())[1] is None


x = torch.ones(30, 2)


class Users(TorchFunctionMode):
    """A mode of the program's own, as a default device is one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_a_mode_of_the_program_may_begin_before_it_is_closed_and_end_later() -> None:
    recorder, users = Recorder(), Users()
    recorder.begin()
    with users:
        loss = small()(x).sum()
        assert recorder.tape(loss) is not None
        recorder.close()
        assert _get_current_function_mode_stack() == [users]


def test_it_does_not_listen_under_a_mode_that_may_end_before_it() -> None:
    recorder = Recorder()
    with Users() as users:
        recorder.begin()
        assert recorder.tape(small()(x).sum()) is None
        assert _get_current_function_mode_stack() == [users]
    recorder.close()


def test_what_we_do_meanwhile_is_not_heard() -> None:
    recorder, model = Recorder(), small()
    recorder.begin()
    loss = model(x).sum()
    recorder.aside = True
    loss.detach().exp()
    recorder.aside = False
    tape = recorder.tape(loss)
    recorder.close()
    assert tape is not None
    assert "exp" not in [call.func.__name__ for call in tape.calls]


def test_a_derivative_that_becomes_an_input_is_told_from_one_in_the_loss() -> None:
    tapes = [recorded(small(), program)[1] for program in (equation, adversarial)]
    assert [tape is not None and tape.derives_inputs for tape in tapes] == [False, True]
