"""Activations written by hand are read as PyTorch's own, and what only looks like one is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from oracle import close, site, watch
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.probe.naming import Names, names_of
from unvanish.torch.probe.probe import Probe
from unvanish.types import Site

Elementwise = Callable[[Tensor], Tensor]


def exponential_tanh(x: Tensor) -> Tensor:
    return (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x))


def even_tanh(x: Tensor) -> Tensor:
    e = torch.exp(-2 * x.abs())
    return torch.sign(x) * (1 - e) / (1 + e)


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.exp(x) - 1)


# written by hand, and PyTorch's own with the straight line behind it left out
HANDMADE: dict[str, tuple[Elementwise, Elementwise]] = {
    "sigmoid": (lambda x: 1 / (1 + torch.exp(-x)), torch.sigmoid),
    "clamped sigmoid": (lambda x: 1 / (1 + torch.exp(-x.clamp(-30, 30))), torch.sigmoid),
    "tanh": (exponential_tanh, torch.tanh),
    "even tanh": (even_tanh, torch.tanh),
    "tanh of a sigmoid": (lambda x: 2 / (1 + torch.exp(-2 * x)) - 1, lambda x: (torch.tanh(x) + 1) / 2),
    "softplus": (softplus, F.softplus),
    "elu": (elu, F.elu),
    "softsign": (lambda x: x / (1 + x.abs()), F.softsign),
}


class Net(nn.Module):
    def __init__(self, function: Elementwise, scale: float = 1.0, *, image: bool = False) -> None:
        super().__init__()
        self.below = nn.Conv2d(1, 5, 3, padding=1) if image else nn.Linear(7, 12)
        self.above = nn.Linear(5 * 16 if image else 12, 3)
        self.function = function
        with torch.no_grad():
            self.below.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.function(self.below(x)).flatten(1))


def derivatives(model: Net, x: Tensor, function: Elementwise) -> Tensor:
    """phi' at every element, by autograd in float64."""
    values = model.double().below(x.double()).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(function(values).sum(), values)
    model.float()
    return slopes


def found(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Site, ...]:
    sites = watch(model, lambda m: F.cross_entropy(m(x), y), len(x))
    return tuple(s for s in sites if s.kind == "activation" and s.op not in ("clamp", "relu", "tanh", "sigmoid"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("name", list(HANDMADE))
def test_flat_share_and_slope_of_an_activation_written_by_hand(name: str, scale: float) -> None:
    function, own = HANDMADE[name]
    model, x, y = Net(function, scale), torch.randn(9, 7), torch.randint(3, (9,))
    (one,) = found(model, x, y)
    slopes = derivatives(model, x, own).abs()
    steepest = min(max(float(slopes.max()), 0.25), 1.0)
    assert one.saturated == pytest.approx(float((slopes < 0.05 * steepest).double().mean()), abs=0.02)
    close(one.reference, math.log(steepest), 1e-3)
    assert one.dead == 0.0
    assert one.inputs == (0,)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "even tanh"])
def test_gains_are_those_of_the_built_in_twin(name: str) -> None:
    function, own = HANDMADE[name]
    model, x, y = Net(function), torch.randn(9, 7), torch.randint(3, (9,))
    (one,) = found(model, x, y)
    twin = Net(own)
    twin.load_state_dict(model.state_dict())
    sites = watch(twin, lambda m: F.cross_entropy(m(x), y), 9)
    expected = next(s for s in sites if s.kind == "activation")
    close(one.log_grad_in, expected.log_grad_in, 1e-5)
    close(one.log_gain, expected.log_gain, 1e-5)


def test_layer_below_is_measured_against_what_it_feeds() -> None:
    model, x, y = Net(HANDMADE["sigmoid"][0]), torch.randn(9, 7), torch.randint(3, (9,))
    below = site(watch(model, lambda m: F.cross_entropy(m(x), y), 9), "below")
    close(below.reference, math.log(0.25), 0.05)


def test_units_lie_along_the_channels_of_a_convolution_and_may_be_dead() -> None:
    model = Net(elu, image=True)
    with torch.no_grad():
        model.below.bias[:2] = -60.0  # type: ignore[index]
    (one,) = found(model, torch.randn(6, 1, 4, 4), torch.randint(3, (6,)))
    assert one.dead == pytest.approx(2 / 5)


def test_gradients_too_faint_to_be_divided_are_not_called_flat() -> None:
    model, x, y = Net(HANDMADE["tanh"][0]).half(), torch.randn(9, 7).half(), torch.randint(3, (9,))
    faint = watch(model, lambda m: 1e-4 * F.cross_entropy(m(x).float(), y), 9)
    assert [s.kind for s in faint if s.op == "div"] == ["merge"]
    (one,) = found(model, x, y)
    assert one.saturated == pytest.approx(0.0, abs=0.02)
    assert one.dead == 0.0


def test_module_around_it_gives_its_name() -> None:
    class Logistic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1 / (1 + torch.exp(-x))

    model = nn.Sequential(nn.Linear(7, 12), Logistic(), nn.Linear(12, 3))
    sites = watch(model, lambda m: F.cross_entropy(m(torch.randn(9, 7)), torch.randint(3, (9,))), 9)
    assert [s.label for s in sites if s.kind == "activation"] == ["1"]


def instance_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-5)


NONE: dict[str, Elementwise] = {
    "a norm": instance_norm,
    "an RMS norm": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "a softmax": lambda x: torch.exp(x) / torch.exp(x).sum(1, keepdim=True),
    "a stable softmax": lambda x: torch.exp(x - x.amax(1, keepdim=True)) / x.exp().sum(1, keepdim=True),
    "a scale": lambda x: 0.5 * x + 1,
    "a mask": lambda x: x * (x > 0),
    "a gate of its own": lambda x: x * torch.sigmoid(x),
    "a gate": lambda x: x.exp() * x.roll(1, 1),
    "a clamped deviation": lambda x: torch.exp(0.5 * x.clamp(-10, 10)),
    "unit length": lambda x: x / x.pow(2).sum(1, keepdim=True).sqrt(),
}


@pytest.mark.parametrize("name", list(NONE))
def test_what_is_no_activation_is_not_taken_for_one(name: str) -> None:
    assert found(Net(NONE[name]), torch.randn(9, 7), torch.randint(3, (9,))) == ()


def test_loss_written_by_hand_is_no_activation() -> None:
    model, x, y = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 1)), torch.randn(9, 7), torch.rand(9, 1)
    sites = watch(model, lambda m: -(y * torch.log(1 / (1 + torch.exp(-m(x))) + 1e-9)).mean(), 9)
    assert [s.op for s in sites if s.kind == "activation"] == ["tanh"]


def test_reparametrised_noise_is_no_activation() -> None:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.log_var, self.out = nn.Linear(7, 4), nn.Linear(7, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.mean(x) + torch.randn(len(x), 4) * torch.exp(0.5 * self.log_var(x)))

    assert found(Coder(), torch.randn(9, 7), torch.randint(3, (9,))) == ()


@pytest.mark.parametrize(("sharp", "axis"), [(0.1, -1), (30.0, -1), (30.0, 1)])
def test_one_hot_rows_of_a_softmax(sharp: float, axis: int) -> None:
    model, x, y = Net(lambda h: F.softmax(sharp * h, axis)), torch.randn(9, 7), torch.randint(3, (9,))
    expected = F.softmax(sharp * model.below(x), axis).amax(axis) > 0.99
    rows = [s for s in watch(model, lambda m: F.cross_entropy(m(x), y), 9) if s.op == "softmax"]
    assert [s.saturated for s in rows] == [pytest.approx(float(expected.double().mean()))]


def test_softmax_over_an_axis_of_one_is_counted() -> None:
    for axis, size in ((1, 12), (2, 1)):
        model = Net(lambda h, axis=axis: F.softmax(h.unsqueeze(-1), axis))
        rows = watch(model, lambda m: F.cross_entropy(m(torch.randn(9, 7)), torch.randint(3, (9,))), 9)
        assert [s.normalized_count for s in rows if s.op == "softmax"] == [size]


def test_parametrized_layers_keep_their_name() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(7, 5))
    sites = watch(nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3)), lambda m: m(torch.randn(9, 7)).sum(), 9)
    assert [s.label for s in sites if s.kind == "linear"] == ["0", "2"]


def test_weights_in_dictionaries_and_lists_have_names_of_their_own() -> None:
    class Tutorial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.ParameterDict({"w0": torch.randn(5, 7), "b0": torch.zeros(5)})
            self.listed = nn.ParameterList([nn.Parameter(torch.randn(3, 5))])

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(F.linear(x, self.held["w0"], self.held["b0"])), self.listed[0])

    model, x, y = Tutorial(), torch.randn(9, 7), torch.randint(3, (9,))
    sites = watch(model, lambda m: F.cross_entropy(m(x), y), 9)
    assert [s.label for s in sites if s.kind == "linear"] == ["held.w0", "listed.0"]
    known = names_of(model)
    below = Names({id(model): "model"}, {key: f"model.{name}" for key, name in known.parameters.items()})
    probe = Probe(below, 9)  # as `unvanish run` names the networks of a program
    with probe.watching():
        loss = F.cross_entropy(model(x), y)
    probe.attach(loss)
    loss.backward()
    assert [s.label for s in probe.sites()[0] if s.kind == "linear"] == ["model.held.w0", "model.listed.0"]
