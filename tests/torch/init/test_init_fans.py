"""Xavier, He, orthogonal and LSUV: fans counted in the Jacobian, statistics, structure, what stays."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.init import he_, lsuv_, orthogonal_, xavier_
from unvanish.torch.init.matrices import Layout, semi_orthogonal, without_direction
from unvanish.torch.init.weights import weights_of

LAYERS = {
    "linear": (nn.Linear(6, 4), (1, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (1, 4, 9)),
    "conv2d": (nn.Conv2d(2, 3, 3, padding=1), (1, 2, 7, 7)),
    "conv3d": (nn.Conv3d(2, 2, 3, padding=1), (1, 2, 5, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (1, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (1, 4, 7, 7)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3, padding=1), (1, 3, 7, 7)),
    "upsampling": (nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1), (1, 3, 7, 7)),
    "transposed, grouped": (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, groups=2), (1, 4, 9)),
    "patches": (nn.Conv2d(2, 5, 2, stride=2), (1, 2, 8, 8)),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_fans_are_those_of_the_jacobian(name: str) -> None:
    """The weights that meet in one inner output, and the outputs that one inner input reaches: counted, not derived."""
    layer, shape = LAYERS[name]
    jacobian = torch.func.jacrev(layer)(torch.randn(shape)).flatten(len(layer(torch.randn(shape)).shape)).flatten(0, -2)
    met, reached = (jacobian != 0).sum(1), (jacobian != 0).sum(0)
    (weight,) = weights_of(layer)
    assert weight.layout.fans == (met.max(), reached.max())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(300, 300),
        nn.Conv1d(96, 96, 5, groups=4),
        nn.ConvTranspose1d(64, 96, 5),
        nn.ConvTranspose1d(96, 96, 4, stride=2, groups=2),
    ],
    ids=str,
)
def test_he_keeps_the_variance_through_any_kind_of_layer(layer: nn.Module) -> None:
    """Grouped and transposed ones too, where PyTorch's own fans are wrong by a factor."""
    torch.manual_seed(0)
    he_(layer, activation="tanh")
    shape = (64, 300) if isinstance(layer, nn.Linear) else (16, layer.in_channels, 200)
    with torch.no_grad():
        y = layer(torch.randn(shape))
    inner = y if y.ndim == 2 else y[..., 20:-20]
    assert inner.var() == pytest.approx(1, rel=0.1)


def test_xavier_of_each_part_of_an_lstm_and_of_attention() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"lstm": nn.LSTM(60, 100), "attention": nn.MultiheadAttention(80, 4)})
    xavier_(net)
    bounds = {
        "lstm.weight_ih_l0": math.sqrt(6 / 160),
        "lstm.weight_hh_l0": math.sqrt(6 / 200),
        "attention.in_proj_weight": math.sqrt(6 / 160),
        "attention.out_proj.weight": math.sqrt(6 / 160),
    }
    for name, bound in bounds.items():
        weight = net.get_parameter(name).detach()
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert all(not p.any() for name, p in net.named_parameters() if "bias" in name)


@pytest.mark.parametrize(("activation", "gain"), [("relu", math.sqrt(2)), ("tanh", 1.0), ("sigmoid", 4.0)])
def test_he_gain(activation: str, gain: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(400, 300)
    he_(layer, activation=activation)
    assert layer.weight.detach().std() == pytest.approx(gain / 20, rel=0.01)


def test_orthogonal_per_gate_and_group() -> None:
    net = nn.ModuleList([nn.GRU(5, 7), nn.Conv2d(8, 4, 3, groups=2)])
    orthogonal_(net, gain=2.0)
    for gate in net[0].weight_hh_l0.reshape(3, 7, 7):
        torch.testing.assert_close(gate @ gate.T, 4 * torch.eye(7))
    for group in net[1].weight.reshape(2, 2, 36):
        torch.testing.assert_close(group @ group.T, 4 * torch.eye(2))


@given(rows=st.integers(1, 12), columns=st.integers(2, 12), count=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_semi_orthogonal_matrices(rows: int, columns: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    like = torch.zeros((), dtype=torch.float64)
    q = semi_orthogonal(count, rows, columns, like=like, generator=generator)
    gram = q @ q.mT if rows <= columns else q.mT @ q
    torch.testing.assert_close(gram, torch.eye(min(rows, columns), dtype=q.dtype).expand_as(gram))
    direction = torch.randn(columns, dtype=q.dtype, generator=generator)
    blind = without_direction(q, direction, generator)
    assert blind.shape == q.shape
    assert (blind @ direction).abs().max() < 1e-12
    values = torch.linalg.svdvals(blind)  # as far from singular as that allows
    torch.testing.assert_close(
        values[:, : min(rows, columns - 1)], torch.ones_like(values[:, : min(rows, columns - 1)])
    )


def test_semi_orthogonal_is_uniform_in_sign() -> None:
    """Without the correction of signs, QR gives matrices whose diagonal leans to one side."""
    q = semi_orthogonal(4000, 3, 3, like=torch.zeros(()), generator=torch.Generator().manual_seed(0))
    assert q.mean(0).abs().max() < 0.05


@pytest.mark.parametrize("transposed", [False, True])
def test_layout_reads_what_it_writes(transposed: bool) -> None:
    layout = Layout((4, 6, 3, 3), 2 if not transposed else 1, transposed)
    kernels = torch.randn(layout.groups, layout.outputs, layout.inputs, layout.taps)
    weight = torch.empty(layout.shape)
    layout.write(weight, kernels)
    torch.testing.assert_close(layout.read(weight), kernels, rtol=0, atol=0)


class Functional(nn.Module):
    """Runs its layers in another order than it registers them, with functional activations."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.outputs = []
        for layer in reversed(self.layers):
            u = layer(x)
            self.outputs.append(u)
            x = F.relu(u)
        return x


def test_lsuv_scales_every_layer_in_the_order_of_execution() -> None:
    torch.manual_seed(0)
    net, x = Functional(40), torch.randn(64, 32)
    lsuv_(net, x)
    net(x)
    assert [round(float(u.detach().std()), 4) for u in net.outputs] == [1.0] * 40


def test_lsuv_runs_the_model_a_fixed_number_of_times() -> None:
    """The published code runs it once per layer and attempt."""
    calls = []
    for depth in (3, 30):
        net = Functional(depth)
        count: list[int] = []
        net.register_forward_hook(lambda *_, count=count: count.append(1))
        lsuv_(net, torch.randn(16, 32))
        calls.append(len(count))
    assert calls[0] == calls[1] <= 2


def test_lsuv_equals_the_slow_loop() -> None:
    """One full forward pass per layer, as in the paper's algorithm 1."""
    torch.manual_seed(0)
    x = torch.randn(50, 32, dtype=torch.float64)
    ours = Functional(12).double()
    slow = Functional(12).double()
    lsuv_(ours, x, generator=torch.Generator().manual_seed(3))
    orthogonal_(slow, generator=torch.Generator().manual_seed(3))
    for position, layer in enumerate(reversed(slow.layers)):
        slow(x)
        layer.weight.data /= slow.outputs[position].std()
    for a, b in zip(ours.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_lsuv_warns_where_nothing_varies() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match="not scaled, as their output is constant"):
        lsuv_(net, torch.zeros(8, 4))


def test_frozen_and_kept_weights_stay() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.LSTM(4, 4), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    before = {name: p.clone() for name, p in net.named_parameters()}
    orthogonal_(net, keep=["1", "3.weight_hh_l0", net[4]])
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"2.weight", "2.bias", "3.weight_ih_l0", "3.bias_ih_l0"}


def test_same_generator_same_weights_and_the_global_one_is_left() -> None:
    nets = [nn.LSTM(3, 4), nn.LSTM(3, 4)]
    state = torch.get_rng_state()
    for function in (xavier_, he_, orthogonal_):
        for net in nets:
            function(net, generator=torch.Generator().manual_seed(1))
        assert torch.equal(nets[0].weight_hh_l0, nets[1].weight_hh_l0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("function", [xavier_, he_, orthogonal_])
def test_nothing_to_initialise(function: object) -> None:
    with pytest.raises(ValueError, match=r"_: no weight to initialise.*Expected.*Unfreeze"):
        function(nn.Sequential(nn.ReLU(), nn.LayerNorm(3)))  # type: ignore[operator]


def test_unknown_name_to_keep() -> None:
    with pytest.raises(ValueError, match="no parameter or module named 'encoder'"):
        xavier_(nn.Linear(2, 2), keep=["encoder"])


def test_parametrised_weights_are_named() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    with pytest.warns(UserWarning, match="Weights computed by a parametrisation are left"):
        he_(net)


def test_sixteen_bit_weights() -> None:
    net = nn.Linear(64, 64, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        orthogonal_(net)
    assert (net.weight.float() @ net.weight.float().T - torch.eye(64)).abs().max() < 0.02
