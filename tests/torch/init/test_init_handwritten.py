"""Activations that users write: found whole, evaluated right, never mistaken; each against the same in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.init import initialize_
from unvanish.torch.init.nonlinearities import Nonlinearity, nonlinearities
from unvanish.torch.wiring import trace


class Act(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def by_index(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0
    return x


def relu(u: np.ndarray) -> np.ndarray:
    return np.maximum(u, 0)


def softplus(u: np.ndarray) -> np.ndarray:
    return np.logaddexp(u, 0)


HANDWRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[np.ndarray], np.ndarray]]] = {
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.0), relu),
    "where, zero first": (lambda x: torch.where(x < 0, torch.tensor(0.0), x), relu),
    "mask": (lambda x: x * (x > 0), relu),
    "index": (by_index, relu),
    "max of a number": (lambda x: torch.max(x, torch.tensor(0.0)), relu),
    "step": (lambda x: (x > 0).float(), lambda u: np.heaviside(u, 0)),
    "heaviside": (lambda x: x * torch.heaviside(x, torch.zeros(())), relu),
    "log(1 + exp)": (lambda x: torch.log(1 + torch.exp(x)), softplus),
    "log1p(exp)": (lambda x: torch.log1p(x.exp()), softplus),
    "logaddexp": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), softplus),
    "max of two": (lambda x: torch.max(x, 0.2 * x), lambda u: np.maximum(u, 0.2 * u)),
    "square root": (lambda x: x / torch.sqrt(1 + x * x), lambda u: u / np.sqrt(1 + u * u)),
    "signed log": (lambda x: x.sign() * torch.log1p(x.abs()), lambda u: np.sign(u) * np.log1p(abs(u))),
    "signed root": (lambda x: x / (x.abs() + 0.1).sqrt(), lambda u: u / np.sqrt(abs(u) + 0.1)),
    "lerp": (lambda x: torch.lerp(x.tanh(), x, 0.1), lambda u: 0.9 * np.tanh(u) + 0.1 * u),
    "addcmul": (lambda x: torch.addcmul(x, x, x.sin(), value=0.2), lambda u: u + 0.2 * u * np.sin(u)),
    "casts": (lambda x: torch.tanh(x.double()).to(x.dtype), np.tanh),
}


def curves(net: nn.Module, x: Tensor) -> list[Nonlinearity]:
    return nonlinearities(trace(net, x), net)


@pytest.mark.parametrize("name", list(HANDWRITTEN))
def test_it_is_one_function_and_evaluated_as_it_is(name: str) -> None:
    function, expected = HANDWRITTEN[name]
    (curve,) = curves(nn.Sequential(nn.Linear(4, 3), Act(function), nn.Linear(3, 2)), torch.randn(5, 4))
    u = np.linspace(-6, 6, 121) + 0.01
    np.testing.assert_allclose(curve.phi(u), expected(u), rtol=1e-6 if name == "heaviside" else 1e-12, atol=1e-12)
    assert curve.alone


@pytest.mark.parametrize("name", [name for name in HANDWRITTEN if name not in ("step", "heaviside")])
def test_twenty_layers_of_it(name: str) -> None:
    torch.manual_seed(0)
    layers = [m for _ in range(20) for m in (nn.Linear(32, 32), Act(HANDWRITTEN[name][0]))]
    done = initialize_(nn.Sequential(*layers, nn.Linear(32, 3)), torch.randn(64, 32))
    assert done.ok, str(done)
    assert done.depths == (20,)


def deep(function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    return nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(8, 8), Act(function))])


@pytest.mark.parametrize("function", [lambda x: (x > 0).float(), lambda x: x.detach().tanh()], ids=["step", "detach"])
def test_a_gradient_that_is_cut_off_is_zero_not_unobserved(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.warns(UserWarning, match="the gradient backward shrinks"):
        done = initialize_(deep(function), torch.randn(16, 8))
    assert done.after.backward == -math.inf


def test_an_op_without_derivative_is_not_observed() -> None:
    done = initialize_(deep(lambda x: x * torch.heaviside(x, torch.zeros(()))), torch.randn(16, 8))
    assert done.after.backward is None
    assert done.after.forward is not None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / x.norm(dim=-1, keepdim=True),
        lambda x: x - x.mean(),
        lambda x: x.cumsum(0),
        lambda x: x + torch.randn_like(x),
        lambda x: x.sort(dim=0).values,
        lambda x: x.flip(1),
        lambda x: torch.max(x, dim=0).values.expand_as(x),
        lambda x: x + torch.linspace(0, 1, 3),
        lambda x: torch.softmax(x, -1),
    ],
    ids=["norm", "centred", "cumsum", "noise", "sort", "flip", "max", "position", "softmax"],
)
def test_what_mixes_elements_is_no_activation(function: Callable[[Tensor], Tensor]) -> None:
    net = nn.Sequential(nn.Linear(4, 3), Act(function))
    state = torch.get_rng_state()
    assert not [curve for curve in curves(net, torch.ones(5, 4)) if curve.source == 0]
    assert torch.equal(torch.get_rng_state(), state)


class Leaky(nn.Module):
    """Its slope is a buffer: a constant that no name of an op or argument tells."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.register_buffer("slope", torch.tensor(slope))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)


def test_functions_that_differ_in_a_constant_are_told_apart() -> None:
    net = nn.Sequential(nn.Linear(8, 8), Leaky(0.1), nn.Linear(8, 8), Leaky(0.9), nn.Linear(8, 2))
    first, second = curves(net, torch.randn(4, 8))
    assert first.key != second.key
    details = [action.detail for action in initialize_(net, torch.randn(16, 8)).actions]
    assert details[0] != details[1]


def test_copies_kept_for_later_do_not_hide_an_activation() -> None:
    kept: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        h = torch.tanh(x)
        kept.append(h.detach())
        return h.contiguous()

    assert initialize_(deep(function), torch.randn(16, 8)).depths == (4,)


def test_a_copy_before_a_view_does_not_hide_the_activation_behind_it() -> None:
    net = deep(lambda x: torch.tanh(x.clone().view(-1, 4, 2)).flatten(1))
    assert initialize_(net, torch.randn(16, 8)).depths == (4,)


def test_many_units_with_parameters_of_their_own_are_evaluated_in_parts() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.linspace(0.5, 1.5, 1000))

        def forward(self, x: Tensor) -> Tensor:
            return F.softplus(self.factor * x)

    net = nn.Sequential(nn.Linear(4, 1000), Scaled())
    (curve,) = curves(net, torch.randn(5, 4))
    u = np.linspace(-3, 3, 4001)
    factors = np.linspace(0.5, 1.5, 1000)
    expected = [np.logaddexp(factors * x, 0).mean() for x in u[::1000]]
    np.testing.assert_allclose(curve.phi(u)[::1000], expected, rtol=1e-6)
