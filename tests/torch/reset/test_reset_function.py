"""A reset of a unit that does nothing, or always the same, changes nothing that comes out: to 1e-12 in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from reset_nets import DEAD, ConvFlatten, ResidualMLP, ResNetLike, TransformerBlock, plain, seeded
from torch import nn

from unvanish.torch.reset import Dead, Dormant, Saturated, UnitReset


def reset_once(model, x, score, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"every": 1, "maturity": 0, **settings}
    return UnitReset(model, optimizer, score, **settings).step(x)


def data(*shape, seed=5):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def output_of(model, x):
    """Without dropout, all else in the model's own mode."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model(x).detach()


def cases():
    torch.manual_seed(0)
    dead, flat = Dead(patience=1), Saturated(patience=1)
    net = plain(4, 8, 8, 2)
    net[2].bias.data[3] = DEAD
    yield "linear", net, data(32, 4), dead, "2", (3,)
    net = plain(4, 8, 8, 2, activation=nn.Tanh)
    net[0].bias.data[2], net[0].bias.data[5] = 50, -50
    yield "tanh stuck at both ends", net, data(32, 4), flat, "0", (2, 5)
    net = plain(4, 8, 8, 2, activation=nn.Sigmoid)
    net[2].bias.data[1] = 60
    yield "sigmoid stuck at one", net, data(32, 4), flat, "2", (1,)
    yield "conv, flatten", ConvFlatten(), data(16, 1, 3, 3), dead, "conv", (1,)
    yield "channels last, flatten", ConvFlatten(channels_last=True), data(16, 1, 3, 3), dead, "conv", (1,)
    net = ResidualMLP()
    net.inner.bias.data[6] = DEAD
    yield "residual", net, data(32, 4), dead, "inner", (6,)
    net = ResNetLike()
    net.blocks[1]["norm1"].bias.data[2] = DEAD
    yield "resnet", net.eval(), data(8, 2, 6, 6), dead, "blocks.1.conv1", (2,)
    net = ResNetLike()
    net.blocks[0]["norm1"].bias.data[0] = DEAD
    yield "resnet in training mode", net.train(), data(8, 2, 6, 6), dead, "blocks.0.conv1", (0,)
    net = TransformerBlock(dropout=0.5)
    net.fc1.bias.data[5] = DEAD
    yield "transformer, dropout on", net.train(), data(4, 5, 8), dead, "fc1", (5,)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 2))
    net[0].bias.data[2] = 50
    yield "stuck at one, dropout on", net.train(), data(16, 3), flat, "0", (2,)
    net = nn.Sequential(nn.Linear(3, 5), nn.SiLU(inplace=True), nn.Linear(5, 2))
    net[0].bias.data[2] = DEAD
    yield "in place, dead only before it is overwritten", net, data(16, 3), dead, "0", (2,)
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(12, 2))
    net[0].bias.data[3] = 40
    yield "conv, pool, flatten", net, data(8, 2, 8), flat, "0", (3,)
    net = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), nn.Conv2d(6, 4, 2, groups=2, stride=2), nn.Flatten())
    net[0].bias.data[4] = 40
    yield "grouped", net, data(8, 4, 6, 6), flat, "0", (4,)
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU(True), nn.ConvTranspose2d(6, 2, 2, groups=2))
    net[0].bias.data[1] = DEAD
    yield "transposed, grouped, in place", net, data(8, 4, 3, 3), dead, "0", (1,)
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 8, 3, groups=4), nn.Flatten())
    net[0].bias.data[1] = 40
    yield "read by a depthwise convolution", net, data(8, 2, 4, 4), flat, "0", (1,)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2))
    net[0].bias.data[2] = DEAD
    yield "norm behind the activation", net.eval(), data(16, 3), dead, "0", (2,)


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_what_comes_out_stays(case):
    _, model, x, score, layer, units = case
    model = copy.deepcopy(model).double()
    before = copy.deepcopy(model)
    events = reset_once(model, x, score)
    assert [(e.layer, e.units) for e in events] == [(layer, units)]
    old, new = output_of(before, x), output_of(model, x)
    assert float((new - old).norm() / old.norm()) < 1e-12
    assert events[0].output_change < 1e-12
    weight = model.get_parameter(f"{layer}.weight")
    assert not torch.equal(weight, before.get_parameter(f"{layer}.weight"))


@pytest.mark.parametrize(("channels_last", "columns"), [(False, [4, 5, 6, 7]), (True, [1, 4, 7, 10])])
def test_a_channels_columns_after_flatten_follow_the_memory_layout(channels_last, columns):
    """H = W = 2, C = 3, channel 1: the mask of a known implementation had the two the wrong way round."""
    torch.manual_seed(0)
    model = ConvFlatten(channels_last=channels_last).double()
    before = model.head.weight.detach().clone()
    reset_once(model, data(16, 1, 3, 3), Dead(patience=1))
    zeroed = (model.head.weight == 0).all(dim=0).nonzero().flatten().tolist()
    assert zeroed == columns
    others = [c for c in range(12) if c not in columns]
    assert torch.equal(model.head.weight[:, others], before[:, others])


def test_the_reset_rows_and_no_others_are_new():
    torch.manual_seed(0)
    model = plain(4, 8, 8, 2).double()
    model[2].bias.data[3] = DEAD
    before = copy.deepcopy(model)
    reset_once(model, data(32, 4), Dead(patience=1))
    moved = (model[2].weight != before[2].weight).any(dim=1).nonzero().flatten().tolist()
    assert moved == [3]
    assert model[2].bias[3] == 0
    assert (model[4].weight != before[4].weight).any(dim=0).nonzero().flatten().tolist() == [3]
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[4].bias, before[4].bias), "a dead unit gave nothing to take over"


def test_the_bias_takes_over_the_mean_of_a_unit_that_varies():
    """Continual backprop's own code zeroes the mean before it is used: bias change 0.0, and the output jumps."""
    torch.manual_seed(0)
    model = plain(4, 8, 2).double()
    x = data(64, 4)
    model[0].weight.data[3] *= 0.01
    model[0].bias.data[3] = 0.01
    before = copy.deepcopy(model)
    (event,) = reset_once(model, x, Dormant(tau=0.1))
    assert event.units == (3,)
    h = torch.relu(before[0](x)).detach()
    expected = before[2].bias.detach() + before[2].weight[:, 3].detach() * sum(float(v) for v in h[:, 3]) / len(h)
    torch.testing.assert_close(model[2].bias.detach(), expected, rtol=1e-12, atol=0)
    change = (model(x) - before(x)).detach()
    assert float(change.mean(dim=0).abs().max()) < 1e-15, "the mean output stays"
    assert event.output_change == pytest.approx(float(change.norm() / before(x).detach().norm()), rel=1e-9)
    assert event.output_change > 1e-6, "what varied is gone, and is reported"


def test_without_a_bias_to_take_over_the_change_is_reported():
    torch.manual_seed(0)
    model = plain(4, 8, 2, activation=nn.Tanh, bias=False).double()
    model[0].weight.data[3] = 0
    model[0].weight.data[3, 0] = 50
    x = torch.cat([torch.ones(32, 1, dtype=torch.float64), data(32, 3)], dim=1)
    before = model(x).detach()
    (event,) = reset_once(model, x, Saturated(patience=1))
    assert event.compensated is False
    assert event.output_change == pytest.approx(float((model(x).detach() - before).norm() / before.norm()))
    assert event.output_change > 1e-3


def test_batch_norm_of_a_new_unit_starts_anew_with_its_own_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = data(40, 3) * 3 + 1
    model.train()
    model(x)
    model[1].weight.data.fill_(0.7)
    model[1].bias.data[2] = DEAD
    before = copy.deepcopy(model)
    (event,) = reset_once(model, x, Dead(patience=1))
    assert event.units == (2,)
    u = model[0](x).detach()
    assert model[1].weight.tolist() == [0.7, 0.7, 1.0, 0.7, 0.7]
    assert model[1].bias[2] == 0
    torch.testing.assert_close(model[1].running_mean[2], u[:, 2].mean(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model[1].running_var[2], u[:, 2].var(), rtol=1e-10, atol=1e-12)
    others = [0, 1, 3, 4]
    for name, buffer in model.named_buffers():
        old = dict(before.named_buffers())[name]
        assert torch.equal(buffer[others], old[others]) if buffer.ndim else torch.equal(buffer, old)
    alive = (model[1](u) > 0).any(dim=0)
    assert alive[2], "the new unit is alive"


def test_with_layer_norm_between_the_neighbours_change_and_the_event_says_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)).double()
    model[1].bias.data[4] = DEAD
    x = data(32, 3)
    before = model(x).detach()
    (event,) = reset_once(model, x, Dead(patience=1))
    assert model[1].bias[4] == 0
    true = float((model(x).detach() - before).norm() / before.norm())
    assert event.output_change == pytest.approx(true, rel=1e-9)
    assert true > 1e-3


def test_two_layers_in_a_row_at_once():
    torch.manual_seed(0)
    model = plain(4, 8, 8, 2, activation=nn.Tanh).double()
    model[0].bias.data[1], model[2].bias.data[[2, 5]] = 50, -50
    x = data(32, 4)
    before = model(x)
    events = reset_once(model, x, Saturated(patience=1))
    assert [(e.layer, e.units) for e in events] == [("0", (1,)), ("2", (2, 5))]
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-13)
    slopes = 1 - torch.tanh(model[2](torch.tanh(model[0](x)))) ** 2
    assert (slopes.mean(dim=0) > 0.05).all(), "and none is saturated any more"


@pytest.mark.parametrize(("init", "variance"), [("kaiming", 2 / 300), ("lecun", 1 / 300), ("default", 1 / 900)])
def test_incoming_weights_have_the_variance_that_was_asked_for(init, variance):
    torch.manual_seed(0)
    model = plain(300, 40, 2).double()
    model[0].bias.data[:20] = -1e6
    reset_once(model, data(8, 300), Dead(patience=1), init=init)
    rows = model[0].weight[:20]
    assert float(rows.detach().var()) == pytest.approx(variance, rel=0.05)
    assert float(rows.detach().mean().abs()) < 4 * (variance / rows.numel()) ** 0.5


def test_kaiming_for_a_bounded_activation_is_lecun():
    torch.manual_seed(0)
    model = plain(300, 40, 2, activation=nn.Tanh).double()
    model[0].bias.data[:20] = 1e4
    reset_once(model, data(8, 300), Saturated(patience=1))
    assert float(model[0].weight[:20].detach().var()) == pytest.approx(1 / 300, rel=0.05)


def test_an_initialiser_of_the_users():
    model = plain(4, 8, 2)
    model[0].bias.data[2] = DEAD
    before = model[0].weight.detach().clone()
    reset_once(model, data(16, 4).float(), Dead(patience=1), init=lambda w, g: nn.init.orthogonal_(w, generator=g))
    assert not torch.equal(model[0].weight[2], before[2])
    assert torch.equal(model[0].weight[[0, 1, 3, 4, 5, 6, 7]], before[[0, 1, 3, 4, 5, 6, 7]])


def padded_by_hand() -> nn.Module:
    return nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3))


@pytest.mark.parametrize(
    ("reader", "whole"),
    [
        (lambda: nn.Conv2d(6, 4, 3), True),
        (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), True),
        (lambda: nn.Conv2d(6, 4, 3, padding=1), False),
        (lambda: nn.Conv2d(6, 4, 5, padding=2, stride=2), False),
        (padded_by_hand, False),
        (lambda: nn.ConvTranspose2d(6, 4, 3), False),
        (lambda: nn.ConvTranspose2d(6, 4, 2, stride=2), False),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 4)), True),
    ],
)
@pytest.mark.parametrize("stuck", [True, False])
def test_what_a_bias_can_take_over_is_told_from_what_it_cannot(reader, whole, stuck):
    """Zero padding makes a constant unit's contribution depend on the place: the report has to say so."""
    torch.manual_seed(0)
    activation, score = (nn.Tanh(), Saturated(patience=1)) if stuck else (nn.ReLU(), Dead(patience=1))
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), activation, reader()).double()
    net[0].weight.data[2], net[0].bias.data[2] = 0.0, 60.0 if stuck else DEAD
    x = data(16, 1, 8, 8)
    before = net(x).detach()
    (event,) = reset_once(net, x, score)
    after = net(x).detach()
    change = float((after - before).norm() / before.norm())
    assert event.units == (2,)
    assert event.output_change == pytest.approx(change, rel=1e-6, abs=1e-15)
    assert event.compensated is (whole or not stuck)
    assert (change < 1e-12) is event.compensated
    assert ("could not take over" in str(event)) is not event.compensated
    channels = (after - before).movedim(1, -1).flatten(0, -2)
    assert float(channels.mean(dim=0).abs().max()) < 1e-12, "the mean over all places stays: no bias can do more"
