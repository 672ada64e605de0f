"""Activations that are no single elementwise function of torch: written by hand, and softmax."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from reset_nets import DEAD, seeded
from torch import nn

from unvanish.torch.reset import Dead, Saturated, UnitReset


def data(*shape, seed=5):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


class Own(nn.Module):
    """A function between two layers."""

    def __init__(self, function, width=6):
        super().__init__()
        self.up, self.down, self.function = nn.Linear(4, width), nn.Linear(width, 3), function

    def forward(self, x):
        return self.down(self.function(self.up(x)))


def check(model, x, *scores, **settings):
    return UnitReset(model, torch.optim.Adam(model.parameters()), scores, every=1, maturity=0, **settings).check(x)


BY_HAND = {
    "relu, where": (lambda u: torch.where(u > 0, u, torch.zeros_like(u)), F.relu, DEAD, "dead"),
    "relu, a mask": (lambda u: u * (u > 0), F.relu, DEAD, "dead"),
    "silu": (lambda u: u * torch.sigmoid(u), F.silu, DEAD, "dead"),
    "silu, in place": (lambda u: u.mul_(torch.sigmoid(u)), F.silu, DEAD, "dead"),
    "tanh": (lambda u: torch.sinh(u.clamp(-9, 9)) / torch.cosh(u.clamp(-9, 9)), torch.tanh, 7.0, "saturated"),
    "sigmoid": (lambda u: 1 / (1 + torch.exp(-u)), torch.sigmoid, 12.0, "saturated"),
    "softsign": (lambda u: u / (1 + u.abs()), F.softsign, -50.0, "saturated"),
    "log sigmoid": (F.logsigmoid, F.logsigmoid, 1e3, "dead"),
    "log sigmoid by hand": (lambda u: -torch.log(1 + torch.exp(-u)), F.logsigmoid, 600.0, "dead"),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_written_by_hand_or_torchs_own_is_the_same_to_it(name):
    by_hand, torchs, bias, score = BY_HAND[name]
    torch.manual_seed(0)
    net, x = Own(by_hand).double(), data(64, 4)
    net.up.bias.data[2] = bias
    twin = copy.deepcopy(net)
    twin.function = torchs
    before = net(x).detach()
    scores = Dead(patience=1), Saturated(patience=1)
    (event,), (expected,) = check(net, x, *scores).events, check(twin, x, *scores).events
    assert (event.units, event.score) == (expected.units, expected.score) == ((2,), score)
    torch.testing.assert_close(net.down.bias, twin.down.bias)
    torch.testing.assert_close(net.up.weight, twin.up.weight)
    change = float((net(x).detach() - before).norm() / before.norm())
    assert event.output_change == pytest.approx(change, rel=1e-9, abs=1e-15)
    assert change < 1e-2  # of softsign at -50 something is left


class Annealed(nn.Module):
    """A function with a number that changes in training."""

    def __init__(self):
        super().__init__()
        self.sharpness = 1.0

    def forward(self, x):
        return x * torch.sigmoid(self.sharpness * x)


def test_a_number_in_the_function_is_todays():
    torch.manual_seed(0)
    net, x = Own(Annealed()).double(), data(64, 4)
    net.up.bias.data[2] = -12.0
    reset = UnitReset(net, torch.optim.Adam(net.parameters()), Dead(patience=1), every=1, maturity=0)
    assert not reset.check(x, dry_run=True).events
    net.function.sharpness = 5.0
    assert [event.units for event in reset.check(x).events] == [(2,)]


def softmax_net(width=6):
    torch.manual_seed(0)
    return Own(lambda u: torch.softmax(u, dim=-1), width).double()


@pytest.mark.parametrize("function", [lambda u: torch.softmax(u, 1), lambda u: F.softmin(u, dim=-1), nn.Softmax(1)])
@pytest.mark.parametrize("stuck", [1, -1])
def test_a_softmax_unit_stuck_at_either_end(function, stuck):
    net, x = softmax_net(), data(64, 4)
    net.function = function
    net.up.bias.data[2] = 30.0 * stuck
    p = net.function(net.up(x)).detach()
    # by hand: the diagonal of the Jacobian, against that of equal shares, on all samples
    flat = (p * (1 - p) < 0.05 * (1 / 6) * (5 / 6)).all(dim=0).nonzero().flatten().tolist()
    assert 2 in flat
    if float(p[:, 2].mean()) > 0.5:  # the others have nothing because of it: they are not ill
        flat = [2]
    before = copy.deepcopy(net)
    events = check(net, x, Saturated(patience=1), max_share=1.0).events
    assert [event.units for event in events] == [tuple(flat)]
    (event,) = events
    old, new = before(x).detach(), net(x).detach()
    assert event.output_change == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-9)
    assert event.compensated is False, "a new unit takes its share from the others"
    share = net.function(net.up(x))[:, 2].detach()
    assert float((share * (1 - share)).max()) > 0.05 * 5 / 36, "and it moves again"


def test_units_of_a_softmax_that_take_turns_are_well():
    """With 200 units each has next to nothing on 99.5 % of the samples: that is its work, and no illness."""
    net = Own(lambda u: torch.softmax(u, dim=-1), 200).double()
    with torch.no_grad():
        net.up.weight.zero_()
        net.up.weight[:, 0] = torch.arange(200.0)
        net.up.bias.copy_(-0.5 * torch.arange(200.0) ** 2)  # the largest is the unit nearest to x_0
    x = torch.zeros(2000, 4, dtype=torch.float64)
    x[:, 0] = torch.arange(2000) / 10
    assert float((net.function(10 * net.up(x)) > 0.5).sum(dim=1).double().mean()) > 0.9
    assert not check(net, x, Dead(patience=1), Saturated(patience=1)).events


def test_even_shares_are_well_however_small():
    net = Own(lambda u: torch.softmax(u, dim=-1), 500).double()
    assert not check(net, data(64, 4), Dead(patience=1), Saturated(patience=1)).events


def test_an_attention_and_a_gate_are_named():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.value, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.down(torch.softmax(self.gate(x), -1) * self.value(x))

    found = check(Gate().double(), data(8, 4), Saturated(patience=1))
    whys = {layer.layer: layer.why for layer in found.not_resettable}
    assert "`mul` joins them with another branch" in whys["gate"]
