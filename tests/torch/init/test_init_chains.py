"""Operating points and mirrored weights: the formulas, exact isometry, every kind of layer, deep and in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.theory import operating_point
from unvanish.torch.init import initialize_, learning_rate, mirrored_, operating_point_
from unvanish.torch.init.nonlinearities import nonlinearities
from unvanish.torch.wiring import trace


def chain(depth: int, act: Callable[[], nn.Module], width: int = 32, bias: bool = True) -> nn.Sequential:
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width, bias=bias), act())]
    return nn.Sequential(*layers, nn.Linear(width, 5, bias=bias)).double()


def gradient_gain(net: nn.Sequential, x: Tensor) -> float:
    """ln of the gradient's norm at the first activation over that at the last: plain autograd, float64."""
    outputs: list[Tensor] = []
    for layer in net:
        x = layer(x)
        outputs.append(x)
    torch.manual_seed(0)
    first, last = outputs[1], outputs[-2]
    cotangent = torch.randn_like(last)
    (gradient,) = torch.autograd.grad(last, first, cotangent)
    return math.log(gradient.norm() / cotangent.norm())


@pytest.mark.parametrize("act", [nn.Tanh, nn.Sigmoid, nn.Softsign, nn.ELU, nn.Mish])
def test_weights_and_biases_follow_the_formulas(act: Callable[[], nn.Module]) -> None:
    net = chain(20, act)
    x = torch.randn(4000, 32, dtype=torch.float64) * 3 + 2
    operating_point_(net, x)
    function = act()
    alpha, beta, mean, gamma = operating_point(lambda u: function(torch.from_numpy(u)).numpy(), 20)
    eye = torch.eye(32, dtype=torch.float64)
    hidden, out = net[2], net[-1]
    torch.testing.assert_close(hidden.weight @ hidden.weight.T, (alpha * gamma) ** 2 * eye)
    torch.testing.assert_close(hidden.bias, beta - mean * hidden.weight.sum(1))
    torch.testing.assert_close(out.weight @ out.weight.T, gamma**2 * eye[:5, :5])
    torch.testing.assert_close(out.bias, -mean * out.weight.sum(1))
    u = net[0](x)  # the first layer takes the data as it comes
    assert float(u.detach().mean()) == pytest.approx(beta, abs=1e-9)
    assert float(u.detach().std()) == pytest.approx(alpha, rel=1e-3)


@pytest.mark.parametrize("act", [nn.Tanh, nn.Sigmoid, nn.ELU, nn.Mish, nn.SELU, nn.Hardtanh, nn.ReLU6, nn.Softsign])
@pytest.mark.parametrize("bias", [True, False])
def test_a_hundred_layers_at_the_operating_point(act: Callable[[], nn.Module], bias: bool) -> None:
    torch.manual_seed(1)
    net = chain(100, act, bias=bias)
    x = torch.randn(64, 32, dtype=torch.float64)
    done = operating_point_(net, x)
    assert done.ok
    assert abs(gradient_gain(net, x)) < (1.2 if bias else 2.0)  # without biases a shift drifts a little


@pytest.mark.parametrize(
    ("act", "k"), [(nn.ReLU, 1.0), (lambda: nn.LeakyReLU(0.3), 1.3), (nn.GELU, 1.0), (nn.SiLU, 1.0), (nn.Softplus, 1.0)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_mirrored_network_is_a_rotation(act: Callable[[], nn.Module], k: float, bias: bool) -> None:
    """From the first hidden code to the output it is exactly linear, with orthonormal columns: no matter how deep."""
    net = chain(200, act, bias=bias)
    x = torch.randn(8, 32, dtype=torch.float64)
    mirrored_(net, x)
    h = net[1](net[0](x)).detach()
    v = (h[:, :16] - h[:, 16:]) / k

    def rest(v: Tensor) -> Tensor:  # through layers 2 to 200, up to the code before the last activation
        h = torch.cat([act()(v), act()(-v)])
        return net[2:-2](h)[:16]

    jacobian = torch.func.jacrev(rest)(v[0])
    torch.testing.assert_close(jacobian @ jacobian.T, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(rest(3 * v[1]), 3 * rest(v[1]), rtol=1e-7, atol=1e-9)


def test_mirrored_blocks() -> None:
    net = chain(3, lambda: nn.LeakyReLU(0.5))
    mirrored_(net, torch.randn(16, 32, dtype=torch.float64))
    w = net[2].weight
    q = w[:16, :16]
    torch.testing.assert_close(w, torch.cat([torch.cat([q, -q], 1), torch.cat([-q, q], 1)]), rtol=0, atol=0)
    torch.testing.assert_close(q @ q.T, torch.eye(16, dtype=torch.float64) / 1.5**2)


def own(u: Tensor) -> Tensor:
    """A user's function of several ops, neither odd nor mirrored."""
    return torch.sin(u) + 0.1 * u * u


class Functional(nn.Module):
    def __init__(self, depth: int, function: Callable[[Tensor], Tensor], widths: tuple[int, ...] = (32,)) -> None:
        super().__init__()
        sizes = [32, *(widths[i % len(widths)] for i in range(depth))]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.function(layer(x))
        return self.head(x)


@pytest.mark.parametrize(
    ("function", "method"),
    [
        (own, "operating point"),
        (lambda u: u * torch.sigmoid(u), "mirrored"),
        (lambda u: F.relu(u) ** 2, "operating point"),
        (lambda u: torch.where(u > 0, u, 0.1 * u), "mirrored"),
        (F.relu, "mirrored"),
    ],
    ids=["sin + square", "handwritten SiLU", "squared ReLU", "where", "functional"],
)
def test_a_users_own_activation(function: Callable[[Tensor], Tensor], method: str) -> None:
    torch.manual_seed(0)
    net = Functional(40, function)
    x = torch.randn(64, 32)
    done = initialize_(net, x)
    assert done.ok
    assert done.actions[3].method == method


def test_handwritten_function_is_evaluated_as_it_is() -> None:
    net = Functional(2, own)
    curve = nonlinearities(trace(net, torch.randn(4, 32)), net)[0]
    u = np.linspace(-3, 3, 13)
    np.testing.assert_allclose(curve.phi(u), np.sin(u) + 0.1 * u * u, rtol=1e-12)
    assert curve.mirror is None
    assert not curve.straight


class Swish(nn.Module):
    """With a learned factor, one for all units or one for each, as it is or by way of its logarithm."""

    def __init__(self, *shape: int, log: bool = False) -> None:
        super().__init__()
        self.factor, self.log = nn.Parameter(torch.full(shape, 0.4 if log else 1.5)), log

    def forward(self, u: Tensor) -> Tensor:
        return u * torch.sigmoid((self.factor.exp() if self.log else self.factor) * u)


@pytest.mark.parametrize(
    "act",
    [Swish, lambda: Swish(1), lambda: Swish(32), lambda: Swish(32, log=True), lambda: nn.PReLU(32)],
    ids=["scalar", "one", "per unit", "by its logarithm", "prelu"],
)
def test_activations_that_learn(act: Callable[[], nn.Module]) -> None:
    net = chain(40, act).float()
    done = initialize_(net, torch.randn(64, 32))
    assert done.ok
    assert done.depths == (40,)
    assert {action.method for action in done.actions[:-1]} == {"mirrored"}


def test_a_factor_per_unit_counts_with_its_mean() -> None:
    net = nn.Sequential(nn.Linear(3, 2), Swish(2))
    net[1].factor.data = torch.tensor([0.5, 3.0])
    (curve,) = nonlinearities(trace(net, torch.randn(4, 3)), net)
    u = np.linspace(-3, 3, 13)
    np.testing.assert_allclose(curve.phi(u), (u / (1 + np.exp(-0.5 * u)) + u / (1 + np.exp(-3 * u))) / 2, rtol=1e-6)


class Hidden(torch.autograd.Function):
    """tanh with a backward pass of its own, which no trace sees."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        h = torch.tanh(u)
        ctx.save_for_backward(h)
        return h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return gradient * (1 - h * h)


def test_a_users_own_backward_is_looked_through() -> None:
    done = initialize_(Functional(60, Hidden.apply), torch.randn(64, 32))
    assert done.depths == (60,)
    assert done.after.backward == pytest.approx(1.3, abs=0.3)  # to the head, which makes up for the scale of tanh
    assert str(done).splitlines()[-1] == "ok"


@given(widths=st.lists(st.integers(6, 48), min_size=1, max_size=4), seed=st.integers(0, 50))
@settings(max_examples=8, deadline=None)
def test_any_widths(widths: list[int], seed: int) -> None:
    """Odd, even, narrow, wide: signal and gradient keep their size, and directions by the narrowest layer."""
    torch.manual_seed(seed)
    net = Functional(60, F.relu, tuple(widths))
    done = initialize_(net, torch.randn(64, 32))
    assert done.ok
    assert done.after.rank is not None
    assert done.after.rank > 0.1 * min(32, *widths)


@given(widths=st.lists(st.integers(4, 40), min_size=2, max_size=4), seed=st.integers(0, 50))
@settings(max_examples=8, deadline=None)
def test_linear_layers_of_any_widths_lose_only_what_the_narrowest_must(widths: list[int], seed: int) -> None:
    """Without activations, the product of all layers has equal singular values, as many as the narrowest has units."""
    torch.manual_seed(seed)
    sizes = [32, *widths * 5]
    net = nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(sizes)]).double()
    x = torch.randn(500, 32, dtype=torch.float64)
    initialize_(net, x)
    assert float(net(x).detach().square().mean().sqrt()) == pytest.approx(1, rel=0.15)
    product = torch.linalg.multi_dot([layer.weight.detach() for layer in reversed(net)])
    values = torch.linalg.svdvals(product)
    rank = min(sizes)
    torch.testing.assert_close(values[:rank], values[0].expand(rank), rtol=1e-9, atol=0)
    assert float(values[rank:].sum()) < 1e-9


IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def convolutions(depth: int, act: type[nn.Module], channels: tuple[int, ...], **options: object) -> nn.Sequential:
    sizes = [3, *(channels[i % len(channels)] for i in range(depth))]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Conv2d(a, b, 3, padding=1, **options if a > 3 else {}), act())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(sizes[-1] * 64, 10))


@pytest.mark.parametrize(
    "net",
    [
        convolutions(50, nn.ReLU, (16,)),
        convolutions(50, nn.Tanh, (16,)),
        convolutions(50, nn.Sigmoid, (16,)),
        convolutions(50, nn.GELU, (32, 8, 16)),
        convolutions(50, nn.Tanh, (12, 7)),
        convolutions(50, nn.ReLU, (16,), groups=4),
        convolutions(50, nn.Tanh, (16,), groups=16),
        convolutions(50, nn.Sigmoid, (16,), bias=False),
        convolutions(50, nn.ReLU, (16,), padding_mode="circular"),
    ],
    ids=["relu", "tanh", "sigmoid", "widths", "odd widths", "grouped", "depthwise", "no bias", "circular"],
)
def test_deep_convolutions(net: nn.Sequential) -> None:
    done = initialize_(net, IMAGES)
    assert done.ok, str(done)
    assert not done.after.warnings()
    assert done.depths == (50,)


def test_convolutions_are_orthogonal_at_the_centre_and_zero_around() -> None:
    net = convolutions(4, nn.Tanh, (16,))
    initialize_(net, IMAGES)
    weight = net[4].weight.detach()
    centre = weight[:, :, 1, 1]
    scale = centre[0].norm()
    torch.testing.assert_close(centre @ centre.T / scale**2, torch.eye(16), atol=1e-5, rtol=1e-5)
    assert weight.abs().sum() == pytest.approx(float(centre.abs().sum()))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_transposed_convolutions_fill_every_place_once(stride: int, kernel: int) -> None:
    torch.manual_seed(0)
    net = nn.ConvTranspose1d(4, 4, kernel, stride, bias=False)
    initialize_(net, torch.randn(500, 4, 8))
    x = torch.zeros(4, 4, 8)
    x[:, :, 4] = torch.eye(4)
    y = net(x).detach()  # one unit at one place: it may reach `stride` places, each with its full length
    lengths = y.norm(dim=1)
    reached = lengths[lengths > 0].reshape(4, -1)
    assert reached.shape[1] == stride
    torch.testing.assert_close(reached, reached[0, 0].expand_as(reached))


def test_upsampling_chain() -> None:
    torch.manual_seed(0)
    ups = [m for _ in range(3) for m in (nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.SiLU())]
    net = nn.Sequential(nn.Linear(32, 64), nn.Unflatten(1, (16, 2, 2)), nn.SiLU(), *ups, nn.ConvTranspose2d(16, 3, 3))
    done = initialize_(net, torch.randn(32, 32))
    assert done.ok
    assert done.after.backward == pytest.approx(math.log(8), abs=0.5)  # each unit reaches 64 places


def test_average_pools_are_made_up_for() -> None:
    torch.manual_seed(0)
    blocks = [m for _ in range(3) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))]
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *blocks, nn.Flatten(), nn.Linear(16, 10))
    x = torch.randn(64, 3, 8, 8)
    done = initialize_(net, x)
    assert {a.method for a in done.actions} == {"operating point", "orthogonal"}
    assert float(net(x).detach().std()) == pytest.approx(1, rel=0.2)


def test_a_weight_used_many_times_is_set_for_its_depth() -> None:
    layer, act = nn.Linear(32, 32), nn.Tanh()
    net = nn.Sequential(*[m for _ in range(80) for m in (layer, act)]).double()
    done = initialize_(net, torch.randn(32, 32, dtype=torch.float64))
    assert [action.name for action in done.actions] == ["0.weight"]
    assert done.depths == (80,)
    assert done.ok
    assert abs(gradient_gain(net, torch.randn(8, 32, dtype=torch.float64))) < 1.5


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_inputs_of_any_scale_and_offset(scale: float) -> None:
    torch.manual_seed(0)
    x = scale * (torch.rand(64, 32) + 5)
    net = Functional(30, torch.tanh)
    done = initialize_(net, x)
    assert done.ok
    assert float(net(x).detach().std()) == pytest.approx(1, rel=0.3)


def test_one_sample() -> None:
    net, x = Functional(10, torch.tanh), torch.rand(1, 32)
    done = initialize_(net, x)
    assert done.after.forward is None  # no batch to spread over
    assert str(done).endswith("ok, except that the signal forward and the samples' separation could not be observed")
    assert torch.isfinite(net(x)).all()


def test_constant_inputs_are_not_called_good() -> None:
    net = Functional(10, torch.tanh)
    with pytest.warns(UserWarning, match="samples look alike"):
        done = initialize_(net, torch.ones(8, 32))
    assert not done.ok


def test_learning_rate() -> None:
    assert learning_rate(chain(100, nn.ReLU, 50).float()) == pytest.approx(1 / (50 * 100))
    assert learning_rate(chain(100, nn.Tanh, 50).float(), c=1) == pytest.approx(1 / (50 * 100))
    assert learning_rate(convolutions(40, nn.ReLU, (16,)), IMAGES, c=3) == pytest.approx(3 / (144 * 40))


@pytest.mark.parametrize(
    ("act", "depth"), [(nn.Tanh, 3), (nn.Tanh, 200), (nn.Sigmoid, 100), (nn.ReLU, 5), (nn.Mish, 100), (nn.Softsign, 40)]
)
def test_learning_rate_makes_up_for_the_mean_slope_and_the_mean(act: Callable[[], nn.Module], depth: int) -> None:
    """By Monte Carlo, with autograd's derivative."""
    net, function = chain(depth, act, 20).float(), act()
    alpha, beta, *_ = operating_point(lambda u: function(torch.from_numpy(u)).numpy(), depth)
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = (alpha * z + beta).requires_grad_()
    (slope,) = torch.autograd.grad(function(u).sum(), u)
    y = function(u).detach()
    moves = float(slope.abs().mean()) * torch.tensor([1.0, 1 + float(y.mean().abs() / y.std())])
    assert learning_rate(net, centered=True) == pytest.approx(0.5 / float(moves[0]) / (20 * depth), rel=5e-3)
    assert learning_rate(net) == pytest.approx(0.5 / float(moves[1]) / (20 * depth), rel=1e-2)
    assert learning_rate(net, c=1.0) == pytest.approx(1 / (20 * depth))


@pytest.mark.parametrize(("act", "k"), [(nn.ReLU, 1.0), (nn.GELU, 1.0), (lambda: nn.LeakyReLU(0.5), 1.5)])
def test_learning_rate_of_mirrored_pairs(act: Callable[[], nn.Module], k: float) -> None:
    for centered in (False, True):  # the means of a pair cancel
        assert learning_rate(chain(100, act, 20).float(), centered=centered) == pytest.approx(1 / k / (20 * 100))


def test_the_same_map_learns_the_same_at_the_rate_for_its_slope() -> None:
    """sigmoid(x) = 1/2 + tanh(x/2)/2: one network written in two ways, and one step of signs moves both alike."""
    torch.manual_seed(0)
    tanh, sigmoid = chain(30, nn.Tanh), chain(30, nn.Sigmoid)
    x = torch.randn(64, 32, dtype=torch.float64)
    moves = []
    for net in (tanh, sigmoid):
        operating_point_(net, x, generator=torch.Generator().manual_seed(0))
        layer, output = net[30], net(x)
        step = learning_rate(net, x, centered=True) * centred_signs(net, layer, x)
        with torch.no_grad():
            layer.weight.sub_(step)
        moves.append((output.detach(), net(x).detach() - output.detach()))
    torch.testing.assert_close(moves[0][0], moves[1][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moves[0][1], moves[1][1], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("act", [nn.Sigmoid, nn.Mish, nn.Tanh])
def test_a_step_of_one_sign_moves_no_layer_by_more_than_its_share(act: type[nn.Module]) -> None:
    """The worst that RMSprop can do: a unit's weights all move the same way, and follow the mean of what they read."""
    torch.manual_seed(0)
    net, x = chain(30, act), torch.randn(256, 32, dtype=torch.float64)
    operating_point_(net, x)
    moved, step = net[:32], learning_rate(net, x)
    spread, before = moved(x).std(0).mean(), moved(x)
    with torch.no_grad():
        net[30].weight.add_(step)
        move = (moved(x) - before).square().mean(0).sqrt().mean() / spread
    assert move < 0.5 / 30


def centred_signs(net: nn.Module, layer: nn.Linear, x: Tensor) -> Tensor:
    """What RMSprop makes of a first gradient, without the part along the mean, which only sigmoid has."""
    (gradient,) = torch.autograd.grad(net(x)[:, 0].square().mean(), layer.weight)
    signs = (gradient - gradient.mean(1, keepdim=True)).sign()
    return signs - signs.mean(1, keepdim=True)


def test_learning_rate_of_sequences_counts_their_steps() -> None:
    assert learning_rate(nn.RNN(64, 64, batch_first=True), torch.randn(2, 100, 64)) == pytest.approx(1 / (64 * 100))
    assert learning_rate(nn.LSTM(64, 64), torch.randn(30, 2, 64)) == pytest.approx(1 / (64 * 30))


def test_learning_rate_without_layers() -> None:
    with pytest.raises(ValueError, match="no layer found"):
        learning_rate(nn.ReLU(), torch.randn(3, 4))


def test_mirrored_refuses_what_has_no_pairs() -> None:
    with pytest.raises(ValueError, match=r"nothing in Sequential can be paired.*Use operating_point_"):
        mirrored_(chain(3, nn.Tanh), torch.randn(8, 32, dtype=torch.float64))


@pytest.mark.parametrize(("depth", "method"), [(2, "operating point"), (9, "operating point"), (10, "mirrored")])
def test_shallow_networks_keep_their_width(depth: int, method: str) -> None:
    assert initialize_(Functional(depth, F.relu), torch.randn(16, 32)).actions[0].method == method


@pytest.mark.parametrize("act", [nn.Softshrink, nn.Tanhshrink])
def test_activations_that_are_flat_at_zero(act: type[nn.Module]) -> None:
    torch.manual_seed(0)
    assert initialize_(chain(20, act).float(), torch.randn(64, 32)).ok


def test_steps_have_no_operating_point_and_are_not_called_good() -> None:
    net = Functional(6, torch.sign)
    with pytest.warns(UserWarning, match="the gradient backward shrinks"):
        assert not initialize_(net, torch.randn(16, 32)).ok


def test_compiled_models_are_set_through_their_wrapper() -> None:
    net = chain(12, nn.ReLU).float()
    done = initialize_(torch.compile(net, backend="eager"), torch.randn(16, 32))
    assert done.ok
    assert done.actions[0].name == "0.weight"


class Turned(nn.Module):
    """From a convolution to a linear layer: over the channels, or over the places, of which there are as many."""

    def __init__(self, over_channels: bool) -> None:
        super().__init__()
        self.conv, self.linear, self.over_channels = nn.Conv2d(3, 16, 1), nn.Linear(16, 4), over_channels

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x)).flatten(2)
        return self.linear(h.transpose(1, 2)) if self.over_channels else self.linear(h)


def test_pairs_only_where_the_next_layer_reads_the_same_units() -> None:
    x = torch.rand(8, 3, 4, 4)
    with pytest.raises(ValueError, match="nothing in Turned can be paired"):
        mirrored_(Turned(over_channels=False), x)
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))
    mirrored_(net, x)
    weight = net[3].weight.detach()
    torch.testing.assert_close(weight[:, :128], -weight[:, 128:])
