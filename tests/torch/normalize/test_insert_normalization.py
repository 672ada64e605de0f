"""Inserted norms against networks built by hand with the same norms, in float64, layer kind by layer kind."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unvanish.torch.normalize import insert_normalization_
from unvanish.torch.normalize.layers import norm_for

KINDS = ["batch", "layer", "group", "rms"]


def shaken(model: nn.Module) -> nn.Module:
    """Norm parameters away from 1 and 0, so that a missing one shows."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".norm." in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


class Dense(nn.Module):
    """Activations as functions, a module list, dropout between, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 6), nn.Linear(6, 6, bias=False)])
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        for layer in self.layers:
            x = F.dropout(layer(x), 0.0).tanh()
        return self.head(x)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(4, 6, 2),
            nn.MaxPool2d(2),
            nn.GELU(),
        )
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.body(x).mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.two(torch.sigmoid(self.one(x)))


def by_hand(axes: tuple[int, ...], kind: str, gain, shift, u):
    """The formula, with the mean and variance over the axes written out."""
    mean, squares = u.mean(axes, keepdim=True), u.square().mean(axes, keepdim=True)
    normal = u / (squares + torch.finfo(u.dtype).eps).sqrt() if kind == "rms" else (
        (u - mean) / (squares - mean**2 + 1e-5).sqrt())  # fmt: skip
    return normal * gain + (0 if shift is None else shift)


def grouped(kind: str, u, channel: int, groups: int, gain, shift):
    """Group statistics over each group's channels and the given positions, group by group."""
    parts = [by_hand(tuple(range(1, p.ndim)), kind, 1, None, p) for p in u.transpose(1, channel).chunk(groups, 1)]
    shape = [1] * u.ndim
    shape[channel] = -1
    return torch.cat(parts, 1).transpose(1, channel) * gain.view(shape) + shift.view(shape)


def expected_norm(kind: str, norm: nn.Module, u: torch.Tensor, linear: bool) -> torch.Tensor:
    gain = norm.get_parameter("weight" if hasattr(norm, "weight") else "norm.weight")
    shift = None if kind == "rms" else norm.get_parameter("bias" if hasattr(norm, "bias") else "norm.bias")
    if linear:
        flat = u.reshape(-1, u.shape[-1])
        if kind == "batch":
            return by_hand((0,), kind, gain, shift, flat).reshape(u.shape)
        if kind == "group":
            return grouped(kind, flat, 1, getattr(norm, "norm", norm).num_groups, gain, shift).reshape(u.shape)
        return by_hand((-1,), kind, gain, shift, u)
    view = (1, -1) + (1,) * (u.ndim - 2)
    if kind == "batch":
        return by_hand((0, *range(2, u.ndim)), kind, gain.view(view), shift.view(view), u)
    if kind == "rms":
        return by_hand((1,), kind, gain.view(view), None, u)
    return grouped(kind, u, 1, 1 if kind == "layer" else norm.num_groups, gain, shift)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_equals_the_net_with_the_formula_written_in(kind):
    torch.manual_seed(0)
    model, x = Dense().double(), torch.randn(9, 3, dtype=torch.float64)
    keys = set(model.state_dict())
    report = insert_normalization_(model, kind, x)
    assert [new.layer for new in report.inserted] == ["layers.0", "layers.1"]
    assert {old.layer for old in report.left_out} == {"head"}
    assert keys <= set(model.state_dict())  # nobody's parameter was renamed
    shaken(model)
    h = x
    for layer in model.layers:
        h = expected_norm(kind, layer.norm, F.linear(h, layer.weight, layer.bias), linear=True).tanh()
    torch.testing.assert_close(model(x), F.linear(h, model.head.weight, model.head.bias), rtol=1e-10, atol=1e-12)


class ByHand(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x):
        return self.two(self.function(self.one(x)))


@pytest.mark.parametrize(
    "function",
    [
        lambda u: u * torch.sigmoid(u),
        lambda u: torch.where(u > 0, u, 0.1 * u),
        lambda u: u.mul_(torch.sigmoid(u)),
        lambda u: 1.7159 * torch.tanh(2 * u / 3),
        F.logsigmoid,
    ],
)
def test_activations_written_by_hand(function):
    torch.manual_seed(0)
    model, x = ByHand(function).double(), torch.randn(9, 3, dtype=torch.float64)
    report = insert_normalization_(model, "layer", x)
    assert [new.layer for new in report.inserted] == ["one"]
    h = function(F.layer_norm(F.linear(x, model.one.weight, model.one.bias), (4,)))
    torch.testing.assert_close(model(x), F.linear(h, model.two.weight, model.two.bias))


def test_a_gate_is_no_activation():
    model = ByHand(lambda u: F.pad(u[:, :2] * torch.sigmoid(u[:, 2:]), (0, 2)))
    with pytest.raises(ValueError, match="no activation follows it alone"):
        insert_normalization_(model, "layer", torch.randn(9, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_images_equal_the_net_with_the_formula_written_in(kind):
    torch.manual_seed(0)
    model, x = Images().double(), torch.randn(8, 1, 5, 5, dtype=torch.float64)
    report = insert_normalization_(model, kind, x)
    assert [new.layer for new in report.inserted] == ["body.0", "body.2"]
    shaken(model)
    conv, up = model.body[0], model.body[2]
    h = F.conv2d(x, conv.weight, conv.bias, padding=1)
    h = expected_norm(kind, conv.norm, h, linear=False).relu()
    h = expected_norm(kind, up.norm, F.conv_transpose2d(h, up.weight, up.bias), linear=False)
    h = F.gelu(F.max_pool2d(h, 2)).mean((2, 3))
    torch.testing.assert_close(model(x), F.linear(h, model.out.weight, model.out.bias), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 5, 3), (8, 4, 5, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_sequences_are_normalised_over_their_features(kind, shape):
    torch.manual_seed(0)
    model, x = Tokens().double(), torch.randn(shape, dtype=torch.float64)
    insert_normalization_(model, kind, x)
    shaken(model)
    u = F.linear(x, model.one.weight, model.one.bias)
    h = torch.sigmoid(expected_norm(kind, model.one.norm, u, linear=True))
    torch.testing.assert_close(model(x), F.linear(h, model.two.weight, model.two.bias), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("conv", "shape"), [(nn.Conv1d, (8, 2, 6)), (nn.Conv3d, (8, 2, 4, 4, 4))])
@pytest.mark.parametrize("kind", KINDS)
def test_other_convolutions(kind, conv, shape):
    torch.manual_seed(0)
    model, x = nn.Sequential(conv(2, 4, 3), nn.SiLU(), conv(4, 1, 1)).double(), torch.randn(shape).double()
    insert_normalization_(model, kind, x)
    shaken(model)
    u = conv.forward(model[0], x)
    expected = model[2](F.silu(expected_norm(kind, model[0].norm, u, linear=False)))
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_running_statistics_follow_the_batches_and_serve_evaluation():
    torch.manual_seed(0)
    model, x = Dense().double(), torch.randn(50, 3, dtype=torch.float64)
    insert_normalization_(model, "batch", x)
    norm = model.layers[0].norm
    assert int(norm.num_batches_tracked) == 0  # the traced pass has left no mark
    model(x)
    u = F.linear(x, model.layers[0].weight, model.layers[0].bias)
    torch.testing.assert_close(norm.running_mean, 0.1 * u.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * u.var(0))
    model.eval()
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(model(x), model(x))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_the_optimizer_of_the_layer_trains_its_norm(make):
    torch.manual_seed(0)
    model, x = Dense(), torch.randn(16, 3)
    groups = [
        {"params": [*model.layers[0].parameters()], "lr": 0.1, "weight_decay": 0.01},
        {"params": [*model.layers[1].parameters(), *model.head.parameters()], "lr": 0.2},
    ]
    optimizer = make(groups, lr=0.3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    model(x).square().mean().backward()
    optimizer.step()  # it has state already
    report = insert_normalization_(model, "batch", x, optimizer=optimizer)
    assert [new.group for new in report.inserted] == [0, 1]
    assert any(p is model.layers[0].norm.weight for p in optimizer.param_groups[0]["params"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    scheduler.step()
    assert len(optimizer.param_groups) == 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"layers.0.norm.weight", "layers.0.norm.bias", "layers.1.norm.weight", "layers.1.norm.bias"} <= changed
    expected = model.layers[1].norm.weight.grad
    if make is torch.optim.SGD:  # the group's own learning rate
        torch.testing.assert_close(before["layers.1.norm.weight"] - model.layers[1].norm.weight, 0.2 * expected)


def test_the_way_back_leaves_no_trace():
    torch.manual_seed(0)
    model, x = Dense(), torch.randn(16, 3)
    optimizer = torch.optim.Adam(model.parameters())
    twin, wanted = copy.deepcopy(model.state_dict()), model(x)
    groups = [[*group["params"]] for group in optimizer.param_groups]
    report = insert_normalization_(model, "layer", x, optimizer=optimizer)
    assert not torch.allclose(model(x), wanted)
    model(x).sum().backward()
    optimizer.step()
    report.remove()
    model.load_state_dict(twin)  # strict: the keys are the old ones
    assert torch.equal(model(x), wanted)
    assert all(a is b for a, b in zip(groups[0], optimizer.param_groups[0]["params"], strict=True))
    assert set(optimizer.state) == set(groups[0])
    assert not model.layers[0]._forward_hooks
    report.remove()  # once is enough, twice does no harm


@pytest.mark.parametrize("kind", KINDS)
def test_copies_pickles_state_dicts_and_compiled_models_keep_the_norms(kind):
    torch.manual_seed(0)
    model, x = Images().double(), torch.randn(8, 1, 5, 5, dtype=torch.float64)
    insert_normalization_(model, kind, x)
    shaken(model).eval()
    wanted = model(x)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        next(model.body[0].norm.parameters()).mul_(5.0)  # the copy uses its own norm
    assert torch.equal(copied(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(copied))(x), wanted)
    fresh = Images().double()
    insert_normalization_(fresh, kind, x)
    fresh.load_state_dict(copied.state_dict())
    assert torch.equal(fresh.eval()(x), wanted)
    compiled = torch.compile(copied, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted)


class Hard(nn.Module):
    """Everything that must be left alone, and one layer that must not."""

    class Activated(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    def __init__(self) -> None:
        super().__init__()
        self.normed, self.norm1 = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.after, self.norm2 = nn.Linear(4, 4), nn.LayerNorm(4)
        self.behind = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.activated = self.Activated(4, 4)
        self.narrow = nn.Linear(4, 1)
        self.weight = nn.Parameter(torch.ones(4, 1))
        self.plain = nn.Linear(4, 4)
        self.skip = nn.Linear(4, 4)
        self.gate = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.norm1(self.normed(x)))
        x = self.norm2(torch.relu(self.after(x)))
        x = torch.relu(self.behind(x))
        x = self.activated(torch.relu(self.frozen(x)))
        x = F.linear(torch.tanh(self.narrow(x)), self.weight).tanh()
        x = F.relu(self.plain(x))
        x = F.relu(x + self.skip(x))
        return torch.sigmoid(self.gate(x))


def test_what_is_left_out_and_why():
    model, x = Hard(), torch.randn(16, 4)
    report = insert_normalization_(model, "layer", x)
    assert [new.layer for new in report.inserted] == ["plain"]
    assert {old.layer: old.reason for old in report.left_out} == {
        "normed": "a norm follows it already",
        "after": "a norm follows its activation already",
        "behind": "its input comes from a norm already",
        "frozen": "frozen",
        "activated": "its activation is part of the layer",
        "narrow": "has one feature: there is nothing to normalise over",
        "Hard": "calls linear itself: there is no layer to add to",
        "skip": "no activation follows it alone",
        "gate": "its activation is the model's output",
    }
    assert "+ plain.norm = LayerNorm((4,)" in str(report)
    with pytest.raises(ValueError, match="nothing to normalise"):  # not twice
        insert_normalization_(model, "layer", x)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.step(x))
        return self.head(x)


def test_a_layer_called_three_times():
    torch.manual_seed(0)
    model, x = Shared().double(), torch.randn(16, 4).double()
    with pytest.raises(ValueError, match="called 3 times"):
        insert_normalization_(model, "batch", x)
    insert_normalization_(model, "layer", x)
    h = x
    for _ in range(3):
        h = torch.tanh(F.layer_norm(F.linear(h, model.step.weight, model.step.bias), (4,)))
    torch.testing.assert_close(model(x), F.linear(h, model.head.weight, model.head.bias))


def test_batches_too_small_for_batch_statistics():
    model = Dense()
    with pytest.raises(ValueError, match="batch of 1 sample"):
        insert_normalization_(model, "batch", torch.randn(1, 3))
    assert not hasattr(model.layers[0], "norm")
    insert_normalization_(copy.deepcopy(model), "layer", torch.randn(1, 3))
    with pytest.warns(UserWarning, match="over 4 samples are noisy"):
        insert_normalization_(model, "batch", torch.randn(4, 3))


def deep(depth: int, residual: bool) -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            h = self.two(torch.relu(self.one(x)))
            return x + h if residual else torch.relu(h)

    return nn.Sequential(*(Block() for _ in range(depth)), nn.Linear(4, 2))


def test_depth_without_residual_connections_is_warned_of():
    x = torch.randn(16, 4)
    with pytest.warns(UserWarning, match="40 layers in a row"):
        insert_normalization_(deep(20, residual=False), "batch", x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        insert_normalization_(deep(40, residual=True), "batch", x)
        insert_normalization_(deep(10, residual=False), "layer", x)


def test_the_gradient_behind_batch_norm_grows_as_the_warning_says():
    """1.21 per ReLU layer: Yang et al. 2019, and the reason for the warning."""
    torch.manual_seed(0)
    layers = [module for _ in range(25) for module in (nn.Linear(256, 256), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.Linear(256, 1)), torch.randn(256, 256)
    insert_normalization_(model, "batch", x)
    sums = []
    h = x
    for module in model:
        h = module(h)
        if isinstance(module, nn.ReLU):
            sums.append(h)
    gradients = torch.autograd.grad((h * torch.randn_like(h)).sum(), [sums[4], sums[19]])
    growth = (gradients[0].norm() / gradients[1].norm()).item() ** (1 / 15)
    assert growth == pytest.approx((torch.pi / (torch.pi - 1)) ** 0.5, abs=0.03)


def test_errors_and_warnings_say_what_to_do():
    model, x = Dense(), torch.randn(16, 3)
    with pytest.raises(ValueError, match="kind='instance' is unknown"):
        insert_normalization_(model, "instance", x)
    with pytest.raises(ValueError, match="compile or distribute"):
        insert_normalization_(torch.compile(model, backend="eager"), "layer", x)
    optimizer = torch.optim.SGD(model.layers[0].parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"does not train layers\.1"):
        report = insert_normalization_(model, "layer", x, optimizer=optimizer)
    assert [new.group for new in report.inserted] == [0, None]


def test_device_dtype_mode_and_randomness():
    model = Dense().bfloat16().eval()
    state = torch.get_rng_state()
    insert_normalization_(model, "batch", torch.ones(16, 3, dtype=torch.bfloat16))
    assert torch.equal(state, torch.get_rng_state())
    assert model.layers[0].norm.weight.dtype == torch.bfloat16
    assert not model.layers[0].norm.training


@pytest.mark.parametrize(("features", "groups"), [(64, 32), (48, 24), (7, 1), (2, 1), (6, 3), (100, 25)])
def test_groups_are_equal_and_never_of_one_feature(features, groups):
    norm = norm_for("group", nn.Linear(3, features), 2)
    assert norm.num_groups == groups
    assert features % groups == 0
    assert features // groups > 1
