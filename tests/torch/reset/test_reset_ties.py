"""Weights with several uses: reset exactly where that can be, heard at once where not, else left alone and logged."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from reset_nets import DEAD, plain, seeded
from torch import nn

from unvanish.torch.reset import Dead, Saturated, UnitReset


def data(*shape, seed=5):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def check(model, x, score=None, **settings):
    optimizer = torch.optim.Adam(model.parameters())
    return UnitReset(model, optimizer, score or Dead(patience=1), every=1, maturity=0).check(x, **settings)


def change(before, model, x):
    old, new = before(x).detach(), model(x).detach()
    return float((new - old).norm() / old.norm())


def whys(found):
    return {layer.layer: layer.why for layer in found.not_resettable}


class Siamese(nn.Module):
    """One encoder for two inputs, as for comparing them."""

    def __init__(self, norm=False):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.activation = nn.Tanh()

    def forward(self, x):
        a, b = (self.down(self.activation(self.norm(self.up(half)))) for half in (x, 2 * x.flip(0) + 1))
        return a * b


@pytest.mark.parametrize(("bias", "score"), [(DEAD, Dead(patience=1)), (50.0, Saturated(patience=1))])
def test_a_shared_block_is_reset_exactly(bias, score):
    torch.manual_seed(0)
    net, x = Siamese().double(), data(32, 4)
    net.activation = nn.ReLU() if bias == DEAD else nn.Tanh()
    net.up.bias.data[2] = bias
    before = copy.deepcopy(net)
    (event,) = check(net, x, score).events
    assert (event.layer, event.units, event.compensated) == ("up", (2,), True)
    assert change(before, net, x) < 1e-12
    assert event.output_change < 1e-12
    assert (net.down.weight == 0).all(dim=0).nonzero().flatten().tolist() == [2]
    assert not torch.equal(net.up.weight[2], before.up.weight[2])


def test_a_unit_that_is_dead_in_one_call_only_is_alive():
    torch.manual_seed(0)
    net = Siamese().double()
    net.activation = nn.ReLU()
    net.up.weight.data[2] = torch.tensor([1.0, 0, 0, 0])
    net.up.bias.data[2] = 0.0
    x = data(32, 4).abs()
    x[:, 0] *= -0.4  # the first call has w x < 0, the second 2 w x + 1 > 0 for some
    assert (net.up(x)[:, 2] <= 0).all()
    assert (net.up(2 * x + 1)[:, 2] > 0).any()
    found = check(net, x)
    assert not any(2 in event.units for event in found.events), found


def test_what_differs_between_the_calls_no_bias_can_take_over():
    torch.manual_seed(0)
    net, x = Siamese().double(), data(32, 4)
    net.up.weight.data[2], net.up.bias.data[2] = 0, -30.0
    net.up.weight.data[2, 0] = 20
    x[:, 0] = 1.0  # first call: 20 - 30, second: 60 - 30
    before = copy.deepcopy(net)
    (event,) = check(net, x, Saturated(patience=1)).events
    assert event.compensated is False
    assert event.output_change == pytest.approx(change(before, net, x), rel=1e-9)


def test_running_statistics_of_a_norm_with_two_calls_are_those_of_both():
    torch.manual_seed(0)
    net, x = Siamese(norm=True).double(), data(40, 4)
    net.norm.weight.data[2], net.norm.bias.data[2] = 1.0, 40.0
    check(net, x, Saturated(patience=1))
    u = [net.up(half)[:, 2].detach() for half in (x, 2 * x.flip(0) + 1)]
    torch.testing.assert_close(net.norm.running_mean[2], (u[0].mean() + u[1].mean()) / 2)
    torch.testing.assert_close(net.norm.running_var[2], (u[0].var() + u[1].var()) / 2)


class Autoencoder(nn.Module):
    """A decoder that is its encoder's transpose, in the ways people write it."""

    def __init__(self, way):
        super().__init__()
        self.up, self.way, self.bias = nn.Linear(4, 6), way, nn.Parameter(torch.zeros(4))
        self.down = nn.Linear(6, 4)

    def forward(self, x):
        h = torch.tanh(self.up(x))
        if self.way == "transpose":
            return F.linear(h, self.up.weight.t(), self.bias)
        if self.way == "T":
            return F.linear(h, self.up.weight.T, self.bias)
        return h @ self.up.weight if self.way == "product" else torch.addmm(self.bias, h, self.up.weight)


@pytest.mark.parametrize("way", ["transpose", "T", "product", "addmm"])
def test_a_tied_autoencoder(way):
    torch.manual_seed(0)
    net, x = Autoencoder(way).double(), data(64, 4)
    net.up.weight.data[2], net.up.bias.data[2] = 1.0, 30.0
    before = copy.deepcopy(net)
    (event,) = check(net, x, Saturated(patience=1)).events
    assert (event.layer, event.units, event.compensated) == ("up", (2,), False)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(net.up.weight[others], before.up.weight[others])
    # by hand: the bias takes over the old row times 1, the new row is drawn at a tenth and speaks at once
    row = net.up.weight[2].detach()
    assert 0 < float(row.abs().max()) <= 0.1 * (3 / 4) ** 0.5
    given = torch.outer(torch.tanh(x @ row), row) - (1.0 if way == "product" else 0.0)
    torch.testing.assert_close(net(x), before(x) + given, rtol=1e-10, atol=1e-10)
    assert event.output_change == pytest.approx(change(before, net, x), rel=1e-9)
    if way != "product":  # which has no bias of its own
        assert change(before, net, x) < 0.02
    slope = 1 - torch.tanh(net.up(x)[:, 2].detach()) ** 2
    assert float(slope.min()) > 0.5, "and the unit is alive"


class ConvAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.bias = nn.Conv2d(1, 5, 2, stride=2), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return F.conv_transpose2d(torch.relu(self.up(x)), self.up.weight, self.bias, stride=2)


def test_a_tied_convolutional_autoencoder():
    torch.manual_seed(0)
    net, x = ConvAutoencoder().double(), data(16, 1, 6, 6)
    net.up.bias.data[3] = DEAD
    before = copy.deepcopy(net)
    (event,) = check(net, x).events
    assert (event.layer, event.units) == ("up", (3,))
    assert event.output_change == pytest.approx(change(before, net, x), rel=1e-9)
    assert 0 < event.output_change < 0.05
    assert (net.up(x)[:, 3] > 0).any()


class Tied(nn.Module):
    """The output layer reads units by the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mlp = nn.Embedding(11, 8), plain(8, 8, 8)
        self.bias = nn.Parameter(torch.zeros(11))

    def forward(self, ids):
        return F.linear(torch.tanh(self.mlp(self.embedding(ids))), self.embedding.weight, self.bias)


def test_a_head_that_shares_the_embedding():
    torch.manual_seed(0)
    net, ids = Tied().double(), torch.arange(11)
    net.mlp[2].bias.data[5] = 40.0
    before = copy.deepcopy(net)
    (event,) = check(net, ids, Saturated(patience=1)).events
    assert (event.layer, event.units, event.compensated) == ("mlp.2", (5,), False)
    assert torch.equal(net.embedding.weight, before.embedding.weight), "an entry of every embedding is not ours"
    torch.testing.assert_close(net.bias, before.embedding.weight[:, 5].detach(), check_dtype=False)
    assert event.output_change == pytest.approx(change(before, net, ids), rel=1e-9)
    assert event.output_change < 0.05


class DeepTied(nn.Module):
    """4 - 6 - 5 - 6 - 4 with two weights."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        h = torch.tanh(self.two(torch.tanh(self.one(x))))
        return F.linear(torch.tanh(F.linear(h, self.two.weight.t())), self.one.weight.t())


def test_of_a_deep_tied_autoencoder_only_the_code():
    torch.manual_seed(0)
    net, x = DeepTied().double(), data(32, 4)
    net.one.bias.data[1], net.two.bias.data[3] = 40.0, 40.0
    before = copy.deepcopy(net)
    found = check(net, x, Saturated(patience=1))
    assert found.checked == ("two",)
    done, left = (next(e for e in found.events if e.layer == name) for name in ("two", "one"))
    assert (done.units, done.left_alone) == ((3,), None)
    assert left.units == (1,)
    assert "one.weight is used 2 times" in left.left_alone
    assert torch.equal(net.one.weight, before.one.weight)
    assert "one.weight is used 2 times" in whys(found)["one"]
    assert done.output_change == pytest.approx(change(before, net, x), rel=1e-9)


def test_a_loop_is_left_alone_and_the_log_says_so_once():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    layer.bias.data[2] = DEAD
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    x = data(32, 4).float()
    reset = UnitReset(net, torch.optim.Adam(net.parameters()), Dead(patience=1), every=1, maturity=0)
    (event,) = reset.step(x)
    assert (event.layer, event.units, event.output_change) == ("0", (2,), None)
    assert "in a loop" in event.left_alone
    assert "left alone: 0.weight makes them" in str(event)
    assert reset.step(x) == ()
    assert reset.events == [event]
    found = reset.check(x)
    assert [e.units for e in found.events] == [(2,)], "a report says it each time"
    assert found.checked == ()
    assert "0 with units to reset" in str(found)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    layer.bias.data[0] = DEAD
    assert [e.units for e in reset.step(x)] == [(0, 2)]
    again = UnitReset(net, torch.optim.Adam(net.parameters()), Dead(patience=1), every=1, maturity=0)
    again.load_state_dict(reset.state_dict())
    assert again.step(x) == ()


def test_one_head_for_two_encoders_keeps_its_bias():
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return torch.cat([self.head(torch.tanh(self.a(x))), self.head(torch.tanh(self.b(x)))], 1)

    net, x = Two().double(), data(32, 4)
    net.a.bias.data[2] = 40.0
    before = copy.deepcopy(net)
    (event,) = check(net, x, Saturated(patience=1)).events
    assert (event.layer, event.compensated) == ("a", False)
    assert torch.equal(net(x)[:, 2:], before(x)[:, 2:]), "the other encoder's result is as it was"
    assert event.output_change == pytest.approx(change(before, net, x), rel=1e-9)


def test_a_weight_that_is_a_plain_matrix():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.w = nn.Linear(4, 6), nn.Parameter(torch.ones(6, 2))

        def forward(self, x):
            return torch.relu(self.up(x)) @ self.w

    torch.manual_seed(0)
    net, x = Product().double(), data(32, 4)
    net.up.bias.data[2] = DEAD
    before = copy.deepcopy(net)
    (event,) = check(net, x).events
    assert (event.units, event.compensated) == ((2,), True)
    assert change(before, net, x) == 0
    assert (net.w == 0).all(dim=1).nonzero().flatten().tolist() == [2]
