"""Random layers of every kind: the norm's axes against the mean and variance written out, and the way back."""

from __future__ import annotations

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unvanish.torch.normalize import insert_normalization_

CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
ACTIVATIONS = [torch.tanh, torch.relu, lambda u: u * torch.sigmoid(u), lambda u: torch.where(u > 0, u, 0.1 * u)]


class Net(nn.Module):
    """Two layers, and what stands between them in sight."""

    def __init__(self, one, two, activation):
        super().__init__()
        self.one, self.two, self.activation = one, two, activation

    def forward(self, x):
        self.before = self.one(x)  # a norm, once inserted, belongs to it
        return self.two(self.activation(self.before))


@st.composite
def nets(draw):
    """(net, batch, axis of the features)."""
    torch.manual_seed(draw(st.integers(0, 999)))
    samples, fan_in, features = draw(st.integers(8, 12)), draw(st.integers(1, 3)), draw(st.integers(2, 9))
    positions = draw(st.lists(st.integers(2, 4), max_size=3))
    bias, activation = draw(st.booleans()), draw(st.sampled_from(ACTIVATIONS))
    if not positions or draw(st.booleans()):
        one, two = nn.Linear(fan_in, features, bias=bias), nn.Linear(features, 2)
        shape, axis = (samples, *positions, fan_in), -1
    else:
        kind = draw(st.sampled_from(CONVOLUTIONS[len(positions)]))
        one, two = kind(fan_in, features, 2, bias=bias), kind(features, 2, 1)
        shape, axis = (samples, fan_in, *positions), 1
    return Net(one, two, activation).double(), torch.randn(shape, dtype=torch.float64), axis


def sizes(u: torch.Tensor, axis: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, mean square) over what a norm of this kind takes together, from loops over samples and features."""
    by_feature = u.movedim(axis, -1)
    if kind == "batch":
        parts = [by_feature[..., j] for j in range(by_feature.shape[-1])]
    elif kind == "rms" or axis == -1:
        parts = list(by_feature.reshape(-1, by_feature.shape[-1]))
    else:
        parts = list(by_feature)
    return torch.stack([p.mean() for p in parts]), torch.stack([p.square().mean() for p in parts])


@settings(max_examples=40, deadline=None)
@given(nets(), st.sampled_from(["batch", "layer", "rms"]))
def test_a_new_norm_makes_zero_mean_and_unit_size_over_its_axes(case, kind):
    net, x, axis = case
    insert_normalization_(net, kind, x)
    plain = copy.deepcopy(net.one)
    plain._forward_hooks.clear()
    u = plain(x).detach()
    net(x)
    mean, square = sizes(net.before.detach(), axis, kind)
    old_mean, old_square = sizes(u, axis, kind)
    spread = old_square if kind == "rms" else old_square - old_mean**2
    eps = torch.finfo(u.dtype).eps if kind == "rms" else 1e-5
    torch.testing.assert_close(square, spread / (spread + eps), rtol=1e-6, atol=1e-9)
    if kind != "rms":
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(nets(), st.sampled_from(["batch", "layer", "group", "rms"]))
def test_removed_again_is_the_function_and_the_optimizer_of_before(case, kind):
    net, x, _ = case
    optimizer = torch.optim.Adam(net.named_parameters(), lr=0.1)
    before, names = net(x).detach(), list(optimizer.param_groups[0]["param_names"])
    report = insert_normalization_(net, kind, x, optimizer=optimizer)
    assert [new.layer for new in report.inserted] == ["one"]
    report.remove()
    assert torch.equal(net(x), before)
    assert optimizer.param_groups[0]["param_names"] == names
    assert all(a is b for a, b in zip(net.parameters(), optimizer.param_groups[0]["params"], strict=True))


@settings(max_examples=40, deadline=None)
@given(nets())
def test_in_evaluation_batch_norm_is_the_affine_map_of_its_running_statistics(case):
    net, x, _ = case
    insert_normalization_(net, "batch", x)
    net.eval()
    plain = copy.deepcopy(net.one)
    plain._forward_hooks.clear()
    net(x)
    # nothing was seen in training: mean 0, variance 1
    torch.testing.assert_close(net.before, plain(x) / (1 + 1e-5) ** 0.5)
