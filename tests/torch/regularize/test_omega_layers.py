"""Omega of plain deep nets against its definition, and what it leaves out."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omega_oracle import central_differences, deep_omega, derivative
from torch import nn

from unvanish.torch.regularize import OmegaRegularizer

ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU, "gelu": nn.GELU, "elu": nn.ELU}


def mlp(widths: list[int], activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1]).double()


def measured(model: nn.Module, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    omega = OmegaRegularizer(model)
    with omega.watch():
        loss = scale * model(x).square().sum()
    return omega.penalty(loss)


def frozen_of(model: nn.Sequential, x: torch.Tensor, activation) -> tuple[list, list]:
    """Weights behind the first layer, and (slopes, cotangents) of their transitions."""
    sums = []
    h = x
    for module in model:
        h = module(h)
        if isinstance(module, nn.Linear):
            h.retain_grad()
            sums.append(h)
    h.square().sum().backward()
    weights = [m.weight for m in model if isinstance(m, nn.Linear)][1:]
    frozen = [(derivative(activation, a.detach()), b.grad.clone()) for a, b in pairwise(sums)]
    model.zero_grad()
    return weights, frozen


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=3, max_size=6),
    samples=st.integers(1, 5),
    name=st.sampled_from(sorted(ACTIVATIONS)),
    seed=st.integers(0, 1000),
)
def test_value_and_gradient_are_those_of_the_definition(widths, samples, name, seed):
    torch.manual_seed(seed)
    activation = ACTIVATIONS[name]()
    model = mlp(widths, ACTIVATIONS[name])
    x = torch.randn(samples, widths[0], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a net of dead units has no signal: its penalty is 0
        penalty = measured(model, x)
    weights, frozen = frozen_of(model, x, activation)
    expected = deep_omega(weights, frozen)
    torch.testing.assert_close(penalty, expected, rtol=1e-9, atol=1e-12)
    if not expected.requires_grad:
        return
    wanted = torch.autograd.grad(expected, weights, allow_unused=True, materialize_grads=True)
    penalty.backward()
    for weight, gradient in zip(weights, wanted, strict=True):
        # where all units are dead ||u|| has a corner at 0; torch says 0 or NaN, we say 0
        torch.testing.assert_close(weight.grad, gradient.nan_to_num(0.0), rtol=1e-7, atol=1e-11)
    assert model[0].weight.grad is None  # nothing leads to the first sum
    assert all(m.bias.grad is None for m in model if isinstance(m, nn.Linear))


def test_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    model = mlp([3, 4, 5, 2])
    x = torch.randn(6, 3, dtype=torch.float64)
    weights, frozen = frozen_of(model, x, torch.tanh)
    measured(model, x).backward()
    for weight in weights:
        expected = central_differences(lambda: deep_omega(weights, frozen), weight)
        torch.testing.assert_close(weight.grad, expected, rtol=1e-6, atol=1e-8)


class Images(nn.Module):
    """Convolutions with a grouped one, normalisation, pooling, an in-place activation, and a functional call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding="same", groups=2, stride=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        a = self.first(x)
        b = self.second(nn.functional.relu(self.norm(a), inplace=True))
        c = self.up(nn.functional.avg_pool2d(b.tanh_(), 2))
        return self.head(torch.sigmoid(c).mean((2, 3)))

    def pairs(self):
        """Name of the layer, and the way from the sum before to its input."""
        return [
            ("second", lambda a: torch.relu(nn.functional.batch_norm(a, None, None, training=True))),
            ("up", lambda a: nn.functional.avg_pool2d(torch.tanh(a), 2)),
            ("head", lambda a: torch.sigmoid(a).mean((2, 3))),
        ]


def test_convolutions_with_normalisation_and_pooling_between():
    torch.manual_seed(0)
    model = Images().double()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    measured(model, x).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert set(found) == {"second.weight", "up.weight", "head.weight"}
    assert int(model.norm.num_batches_tracked) == int(before["norm.num_batches_tracked"]) + 1  # the user's pass alone
    sums = [model.first(x).detach()]
    for name, between in model.pairs():
        sums.append(getattr(model, name)(between(sums[-1])).detach())
    for index, (name, between) in enumerate(model.pairs()):
        start, layer = sums[index], getattr(model, name)

        def rest(a, index=index):
            for later, way in model.pairs()[index + 1 :]:
                a = getattr(model, later)(way(a))
            return a.square().sum()

        v = torch.func.grad(rest)(sums[index + 1])

        def penalty(layer=layer, between=between, start=start, v=v):
            (u,) = torch.func.vjp(lambda a: layer(between(a)), start)[1](v)
            ratio = u.flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)
            return (ratio - 1).square().mean()

        expected = central_differences(penalty, layer.weight)
        torch.testing.assert_close(found[f"{name}.weight"], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e15])
def test_the_size_of_the_gradient_does_not_matter(scale):
    torch.manual_seed(1)
    model = mlp([8, 8, 8, 8, 8]).float()
    x = torch.randn(16, 8)
    plain, scaled = measured(model, x), measured(model, x, scale)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=0)
    gradients = [torch.autograd.grad(p, model[4].weight)[0] for p in (plain, scaled)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)


def test_a_dead_sample_counts_for_nothing_and_gives_no_nan():
    torch.manual_seed(2)
    model = mlp([3, 5, 5, 5], nn.ReLU)
    x = torch.randn(4, 3, dtype=torch.float64)
    alone = measured(model, x)
    omega = OmegaRegularizer(model)
    with omega.watch():
        loss = model(torch.cat([x, x]))[:4].square().sum()  # no gradient reaches the second half
    both = omega.penalty(loss)
    torch.testing.assert_close(both, alone)


def test_a_signal_that_is_gone_is_said_to_be_gone():
    model = mlp([3, 5, 5, 5])
    with pytest.warns(UserWarning, match="no gradient reaches any transition"):
        penalty = measured(model, torch.zeros(4, 3, dtype=torch.float64), scale=0.0)
    assert penalty.item() == 0
    penalty.backward()
    assert all(torch.equal(m.weight.grad, torch.zeros_like(m.weight)) for m in list(model)[2::2])


def test_nan_does_not_pass_for_silence():
    model = mlp([3, 5, 5])
    assert measured(model, torch.full((2, 3), torch.nan, dtype=torch.float64)).isnan()


def test_frozen_weights_stay_without_gradient_and_half_precision_works():
    torch.manual_seed(0)
    model = mlp([4, 4, 4, 4])
    model[2].weight.requires_grad_(False)
    penalty = measured(model, torch.randn(2, 4, dtype=torch.float64))
    penalty.backward()
    assert model[2].weight.grad is None
    assert model[4].weight.grad is not None
    half = mlp([4, 4, 4]).bfloat16()
    value = measured(half, torch.randn(2, 4, dtype=torch.bfloat16))
    value.backward()
    assert value.dtype == torch.float32
    assert half[2].weight.grad.dtype == torch.bfloat16


def test_parametrised_weights_hand_the_gradient_on():
    torch.manual_seed(0)
    model = mlp([4, 4, 4])
    plain = measured(model, torch.ones(2, 4, dtype=torch.float64))
    nn.utils.parametrizations.weight_norm(model[2])
    penalty = measured(model, torch.ones(2, 4, dtype=torch.float64))
    torch.testing.assert_close(penalty, plain)
    penalty.backward()
    assert all(p.grad is not None for p in model[2].parametrizations.parameters())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.stem(x)
        h = h + self.two(torch.tanh(self.one(torch.tanh(h))))
        return self.one.weight.sum() * 0 + nn.functional.linear(h, torch.eye(4))


def test_layers_behind_a_sum_are_left_out_aloud():
    with pytest.warns(UserWarning, match="leaves out a computed weight"):
        penalty = measured(Residual(), torch.randn(2, 3))
    assert penalty.item() > 0


def test_nothing_of_the_users_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))
    twin = copy.deepcopy(model)
    x = torch.randn(5, 3)
    torch.manual_seed(7)
    omega = OmegaRegularizer(model)
    with omega.watch():
        loss = model(x).square().mean()
    omega.penalty(loss)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    expected = twin(x).square().mean()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(loss, expected)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    loss.backward()  # the graph is still there
    expected.backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_errors_say_what_to_do():
    model = mlp([3, 4, 4]).float()
    omega = OmegaRegularizer(model)
    with pytest.raises(ValueError, match=r"with omega\.watch"):
        omega.penalty(torch.ones((), requires_grad=True))
    with omega.watch():
        loss = model(torch.randn(2, 3)).sum()
    with pytest.raises(ValueError, match="Expected a scalar"):
        omega.penalty(loss.detach())
    with omega.watch():
        alone = model[0](torch.randn(2, 3)).sum()
    with pytest.raises(ValueError, match="1 layers"):
        omega.penalty(alone)
