"""initialize_ on networks that are no plain chains: branches, norms, attention, recurrence, embeddings; what stays."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.init import Initialization, initialize_

X = torch.rand(32, 24, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(1, 40, (8, 15), generator=torch.Generator().manual_seed(0))


def methods(done: Initialization) -> dict[str, str]:
    return {action.name: action.method for action in done.actions}


class Residual(nn.Module):
    def __init__(self, branch: nn.Module, depth: int = 8, scale: float | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(copy.deepcopy(branch) for _ in range(depth))
        self.head = nn.Linear(24, 5)
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(scale or 0.0)) for _ in range(depth))
        self.scaled = scale is not None

    def forward(self, x: Tensor) -> Tensor:
        for branch, scale in zip(self.branches, self.scales, strict=True):
            x = x + (scale * branch(x) if self.scaled else branch(x))
        return self.head(x)


def test_branches_start_at_zero_and_learn() -> None:
    net = Residual(nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24), nn.Dropout(0.1)))
    done = initialize_(net, X)
    assert done.ok
    assert done.depths == ()
    for branch in net.branches:
        assert not branch[2].weight.any()
        assert branch[0].weight.std().item() > 0
    torch.testing.assert_close(net.eval()(X), net.head(X))
    net(X).square().sum().backward()
    assert all(branch[2].weight.grad.any() for branch in net.branches)


def test_branch_with_a_factor_of_its_own_is_left_to_it() -> None:
    """ReZero: a zero factor in front of a zero layer would never learn."""
    net = Residual(nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24)), scale=0.0)
    assert set(methods(initialize_(net, X)).values()) == {"he", "orthogonal"}
    net(X).square().sum().backward()
    assert all(scale.grad != 0 for scale in net.scales)


def test_branch_that_ends_in_an_activation_starts_small() -> None:
    """Zero weights in front of a ReLU at the end would have zero gradients for ever."""
    net = Residual(nn.Sequential(nn.Linear(24, 24), nn.ReLU()), depth=40)
    done = initialize_(net, X)
    assert done.ok
    assert abs(done.after.forward or 0) < 0.2
    net(X).square().sum().backward()
    assert all(branch[0].weight.grad.any() for branch in net.branches)


class Block(nn.Module):
    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.norm2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        skip = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))
        self.skip = nn.Identity() if a == b and stride == 1 else skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


def resnet(*blocks: nn.Module) -> nn.Sequential:
    stem = (nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4))


def test_resnet_with_batch_norm() -> None:
    """A zero layer in front of a BatchNorm would divide by the root of its epsilon: the norm's own weight is zero."""
    torch.manual_seed(0)
    net, x = resnet(Block(8, 8), Block(8, 16, 2), Block(16, 16)), torch.randn(16, 3, 16, 16)
    net(x)  # the lazy layer
    norms = {name: p.clone() for name, p in net.named_parameters() if "norm" in name or "skip.1" in name}
    done = initialize_(net, x)
    assert done.ok
    last = {f"{i}.norm2.weight" for i in (3, 4, 5)}
    assert {name for name, method in methods(done).items() if method == "zero"} == last
    assert {name for name, p in norms.items() if not torch.equal(net.get_parameter(name), p)} == last
    weight = net[3].conv1.weight.detach()
    fan_in_variance = float(weight.var() * 72)
    assert 0.3 < fan_in_variance < 4
    torch.testing.assert_close(net[5](h := net[:5](x)), h)
    net(x).square().sum().backward()
    assert all(net[i].norm2.weight.grad.any() for i in (3, 4, 5))


def test_forty_blocks_of_batch_norm_keep_the_gradient() -> None:
    torch.manual_seed(0)
    net, x = resnet(*[Block(8, 8) for _ in range(40)]), torch.randn(16, 3, 8, 8)
    net(x)
    done = initialize_(net, x)
    assert done.ok
    assert abs(done.before.backward or 0) > 3
    assert done.after.backward == pytest.approx(-0.35, abs=0.1)  # ReLU after each sum: a half of the units, once


def test_a_kept_norm_stays_at_the_end_of_its_branch() -> None:
    net = Residual(nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24)), depth=2)
    net.branches[1][1].weight.requires_grad_(False)
    initialize_(net, X, keep=["branches.0.1"])
    assert all(bool((branch[1].weight == 1).all()) for branch in net.branches)


def test_a_norm_that_the_trunk_shares_lets_it_through() -> None:
    norm = nn.LayerNorm(24)
    net = Residual(nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24)), depth=2)
    for branch in net.branches:
        branch.append(norm)
    initialize_(nn.Sequential(nn.Linear(24, 24), norm, net), X)
    assert bool((norm.weight == 1).all())


def test_branch_that_ends_in_a_norm_and_an_activation_starts_small() -> None:
    net = Residual(nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24), nn.ReLU()), depth=40)
    done = initialize_(net, X)
    assert done.ok
    assert abs(done.after.backward or 0) < 0.5
    torch.testing.assert_close(net.branches[0][1].weight.detach(), torch.full((24,), 1 / 40))
    net(X).square().sum().backward()
    assert all(branch[0].weight.grad.any() for branch in net.branches)


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, norm_first=norm_first, dropout=0.0)
    net = nn.Sequential(*[copy.deepcopy(layer) for _ in range(4)])
    done = initialize_(net, torch.randn(4, 6, 24))
    assert done.ok
    how = methods(done)
    assert how["0.self_attn.in_proj_weight"] == "xavier"
    assert {how[f"{i}.{name}"] for i in range(4) for name in ("self_attn.out_proj.weight", "linear2.weight")} == {
        "zero"
    }
    bound = (6 / 48) ** 0.5
    assert 0.95 * bound < float(net[0].self_attn.in_proj_weight.detach().abs().max()) <= bound


def test_cross_attention_is_the_encoders_only_way_out() -> None:
    net = nn.Transformer(16, 2, 2, 2, 32, batch_first=True, dropout=0.0)
    done = initialize_(net, (torch.randn(3, 5, 16), torch.randn(3, 4, 16)))
    assert done.ok
    assert methods(done)["decoder.layers.0.multihead_attn.out_proj.weight"] == "xavier"
    net(torch.randn(3, 5, 16), torch.randn(3, 4, 16)).square().sum().backward()
    assert net.encoder.layers[0].linear2.weight.grad.any()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_sequence_models(kind: type[nn.RNNBase]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(40, 12, padding_idx=0)
            self.rnn = kind(12, 16, 2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(32, 40)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.rnn(self.words(ids))[0])

    net = Model()
    done = initialize_(net, IDS)
    assert not done.untouched
    assert all(action.detail == "for 15 steps" for action in done.actions if action.method == "recurrent")
    for name, p in net.rnn.named_parameters():
        for gate in p.reshape(-1, 16, 16) if "weight_hh" in name else ():
            torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)
    assert not net.words.weight[0].any()
    assert float(net(IDS).detach().std()) == pytest.approx(1, rel=0.1)  # the head saw the new rnn, not the old one


def test_cells_called_step_by_step() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTMCell(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return self.head(state[0])

    net = Model()
    done = initialize_(net, torch.randn(5, 30, 4))
    assert methods(done)["cell.weight_hh"] == "recurrent"
    assert "30 steps" in done.actions[0].detail
    assert float(net.cell.bias_ih[8:16].detach().max()) > 1.5


def test_packed_sequences() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, [20, 7])
            return self.rnn(packed)[0].data

    done = initialize_(Model(), torch.randn(20, 2, 3))
    assert "20 steps" in done.actions[0].detail


def test_embedding_that_is_the_head_too() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.mix = nn.Embedding(40, 64), nn.Linear(64, 64)
            self.head = nn.Linear(64, 40, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.tanh(self.mix(self.words(ids))))

    net = Tied()
    done = initialize_(net, IDS)
    assert methods(done) == {"words.weight": "embedding", "mix.weight": "operating point"}
    assert net.head.weight is net.words.weight
    assert float(net.words.weight.detach().std()) == pytest.approx(1 / 8, rel=0.1)


def test_plain_norms_are_not_called_a_cure() -> None:
    """BatchNorm without skips explodes, by e^0.19 per ReLU layer: nothing here mends that, and it says so."""
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(60) for m in (nn.Linear(24, 24), nn.BatchNorm1d(24), nn.ReLU())])
    with pytest.warns(UserWarning, match="the gradient backward grows"):
        done = initialize_(net, X)
    assert not done.ok
    assert "NOT OK" in str(done)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(24, 24), nn.Tanh())
        self.body = nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Dropout(0.5))
        self.frozen = nn.Linear(24, 24).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.frozen(self.body(self.encoder(x)))))


def test_nothing_else_changes() -> None:
    net = Small().train()
    net.body.eval()
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    parameters = {name: p.clone() for name, p in net.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    modes = [m.training for m in net.modules()]
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    x = X.clone()
    done = initialize_(net, x, keep=["encoder"], generator=torch.Generator().manual_seed(0))
    assert {n for n, p in net.named_parameters() if not torch.equal(p, parameters[n])} == {
        "body.0.weight", "body.0.bias", "head.weight", "head.bias",
    }  # fmt: skip
    assert all(torch.equal(p.grad, gradients[name]) for name, p in net.named_parameters())
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    assert [m.training for m in net.modules()] == modes
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.equal(x, X)
    assert dict(done.untouched) == {"unused.weight": "does not meet the data in this forward pass"}


def test_randomness() -> None:
    """Torch's own generator unless one is given: seeds repeat, two calls differ."""
    nets = [nn.Linear(4, 4) for _ in range(4)]
    for net, seed in zip(nets[:3], (1, 1, None), strict=True):
        if seed is not None:
            torch.manual_seed(seed)
        initialize_(net, X[:, :4])
    assert torch.equal(nets[0].weight, nets[1].weight)
    assert not torch.equal(nets[1].weight, nets[2].weight)
    weights = []
    for _ in range(2):
        initialize_(nets[3], X[:, :4], generator=torch.Generator().manual_seed(5))
        weights.append(nets[3].weight.clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 2)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 2)),
        nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 4)),
        nn.LSTM(3, 4, batch_first=True),
    ],
    ids=["linear", "conv", "conv 28x28", "conv1d", "embedding", "lstm"],
)
def test_without_a_batch(net: nn.Module) -> None:
    state = torch.get_rng_state()
    assert initialize_(net, generator=torch.Generator()).ok is not False  # None: too shallow to observe anything
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_says_nothing_about_the_scale_of_data() -> None:
    net = nn.Sequential(nn.Linear(8, 8, dtype=torch.float64), nn.Tanh(), nn.Linear(8, 1, dtype=torch.float64))
    initialize_(net)
    gram = net[0].weight @ net[0].weight.T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(8, dtype=torch.float64))
    assert not net[0].bias.any()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(5, 8)

    def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
        return torch.relu(self.a(x) + self.b(y))


def test_models_of_several_inputs() -> None:
    done = initialize_(TwoInputs(), {"x": torch.randn(6, 4), "y": torch.randn(6, 5)})
    assert set(methods(done)) == {"a.weight", "b.weight"}
    with pytest.raises(ValueError, match=r"none could be guessed for TwoInputs.*Pass one batch"):
        initialize_(TwoInputs())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_batch_that_is_not_finite(value: float) -> None:
    x = X.clone()
    x[3, 2] = value
    with pytest.raises(ValueError, match=r"holds NaN or Inf.*Expected finite inputs.*Clean"):
        initialize_(nn.Linear(24, 3), x)


def test_the_users_own_exception_is_shown_whole() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        initialize_(nn.Linear(3, 3), X)


def test_what_follows_a_frozen_layer_is_scaled_to_what_it_gives() -> None:
    """Next to nothing and far off zero; its own loss of signal is reported all the same."""
    net = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))
    with torch.no_grad():
        net[2].weight.mul_(1e-3)
        net[2].bias.fill_(0.5)
    net[2].requires_grad_(False)
    with pytest.warns(UserWarning, match="the signal forward shrinks"):
        initialize_(net, X)
    assert float(net(X).detach().std(0).mean()) == pytest.approx(1, rel=0.2)
