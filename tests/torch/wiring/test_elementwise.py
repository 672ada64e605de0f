"""Activations written by hand are one activation; what only looks like one is not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unvanish.torch.wiring import trace, with_activations

BY_HAND = {
    "swish": lambda x: x * torch.sigmoid(x),
    "swish in place": lambda x: x.mul_(torch.sigmoid(x)),
    "leaky relu": lambda x: torch.where(x > 0, x, 0.1 * x),
    "relu, a number": lambda x: torch.where(x > 0, x, 0.0),
    "relu, zeros": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "relu, a mask": lambda x: x * (x > 0),
    "relu, filled": lambda x: x.masked_fill(x < 0, 0),
    "leaky relu, the larger": lambda x: torch.max(x, 0.2 * x),
    "tanh": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
    "tanh, hyperbolic": lambda x: torch.sinh(x.clamp(-9, 9)) / torch.cosh(x.clamp(-9, 9)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "softsign": lambda x: x / (1 + x.abs()),
    "softplus": lambda x: torch.log(1 + torch.exp(x)),
    "softplus, log1p": lambda x: torch.log1p(x.exp()),
    "tanh of LeCun": lambda x: 1.7159 * torch.tanh(2 * x / 3),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu, by tanh": lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x**3))),
    "hardswish": lambda x: F.relu6(x + 3) / 6 * x,
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "squared relu": lambda x: F.relu(x) ** 2,
    "snake": lambda x: x + torch.sin(x) ** 2,
    "a square": lambda x: x * x,
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "absolute value": lambda x: x.abs(),
    "two in a row": lambda x: torch.tanh(F.relu(x)),
}


def gated(x):
    a, b = x.chunk(2, -1)
    return a * torch.sigmoid(b)


NONE = {
    "a straight line": lambda x: (2 * x + 1) / 3,
    "nothing at all": lambda x: x,
    "minus the mean": lambda x: x * (x - x.mean(-1, keepdim=True)),
    "softmax": lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
    "two units": lambda x: x * x.flip(-1),
    "two halves": gated,
    "noise": lambda x: (x + torch.rand_like(x)) * x,
    "by position": lambda x: x * torch.arange(x.shape[-1]),
    "summed up": lambda x: x.cumsum(-1) * x,
    "sorted": lambda x: x.sort(-1)[0],
    "a mask alone": lambda x: (x > 0) & (x < 1),
}


class Own(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def behind_linear(function, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), Own(function)).to(dtype)
    x = torch.randn(5, 4).to(dtype)
    wiring = trace(net, x)
    return net, x, wiring, with_activations(wiring, x[:0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", BY_HAND)
def test_written_by_hand_is_one_activation_with_the_same_values(name, dtype):
    function = BY_HAND[name]
    net, x, wiring, found = behind_linear(function, dtype)
    op = found.activation_after(0)
    assert op.inputs == (0,)
    assert op.members == tuple(range(1, len(wiring.ops)))
    assert found.readers(0) == (op.index,)
    u = net[0](x).detach()
    assert torch.equal(op.apply(u), function(u.clone()))
    assert all(not found.readers(index) and not found.ops[index].inputs for index in op.members[:-1])


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_elementwise_function_stays_as_it_is(name):
    _, _, wiring, found = behind_linear(NONE[name])
    assert all(not op.members for op in found.ops)
    assert found == wiring


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(BY_HAND)), st.sampled_from(sorted(BY_HAND)), st.integers(0, 99))
def test_chains_of_two_functions_are_one(first, second, seed):
    net, x, _, found = behind_linear(lambda u: BY_HAND[second](BY_HAND[first](u)), torch.float64, seed)
    op = found.activation_after(0)
    u = net[0](x).detach()
    torch.testing.assert_close(op.apply(u), BY_HAND[second](BY_HAND[first](u.clone())), rtol=0, atol=0, equal_nan=True)


def test_slopes_through_the_members_are_those_of_autograd():
    net, x, _, found = behind_linear(BY_HAND["gelu, by tanh"], torch.float64)
    u = net[0](x).detach().requires_grad_()
    (got,) = torch.autograd.grad(found.activation_after(0).apply(u).sum(), u)
    (expected,) = torch.autograd.grad(F.gelu(u, approximate="tanh").sum(), u)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


class Fork(nn.Module):
    """Two functions of one sum: no single activation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        h = self.a(x)
        s = torch.sigmoid(h)
        return self.b(s) + self.c(h * s)


def test_two_functions_of_one_output_stay_two():
    wiring = trace(Fork(), torch.randn(3, 4))
    assert with_activations(wiring, torch.ones(1)) == wiring


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


def test_parameters_of_the_function_are_named_and_stay_the_users():
    net = nn.Sequential(nn.Linear(4, 6), Learned())
    op = with_activations(trace(net, torch.randn(5, 4)), torch.ones(1)).activation_after(0)
    assert [name for _, name in op.parameters] == ["1.beta"]
    x = torch.tensor([1.0])
    before = op.apply(x)
    net[1].beta.data.fill_(3.0)
    assert not torch.equal(op.apply(x), before), "it is the parameter itself that is read, not a copy"


def test_the_random_stream_stays():
    wiring = trace(nn.Sequential(nn.Linear(4, 6), Own(NONE["noise"])), torch.randn(5, 4))
    state = torch.get_rng_state()
    with_activations(wiring, torch.ones(1))
    assert torch.equal(torch.get_rng_state(), state)


ACTIVATIONS = [
    nn.Threshold(0, 0) if name == "Threshold" else getattr(nn, name)()
    for name in nn.modules.activation.__all__
    if name not in ("MultiheadAttention", "Softmax", "Softmin", "LogSoftmax", "Softmax2d")
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_every_activation_of_torch_is_known_by_name(activation):
    (op,) = trace(activation, torch.randn(4, 6)).ops
    assert op.kind == "activation"
