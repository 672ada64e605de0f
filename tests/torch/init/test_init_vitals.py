"""Signs of life against the dense Jacobian, in float64, and the gates."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from unvanish.torch.init import Vitals, chrono_, initialize_
from unvanish.torch.init.vitals import vital_signs
from unvanish.torch.wiring import trace


def dense(net: nn.Sequential, x: torch.Tensor) -> tuple[float, float, float, float]:
    """Forward gain, backward gain, separation, stable rank; sample by sample, matrix by matrix."""
    net = copy.deepcopy(net).requires_grad_(False)
    first = net[:2](x).detach()
    last = net[:-1](x).detach()
    jacobians = [torch.func.jacrev(net[2:-1])(h) for h in first]
    squares = [float(j.square().sum()) for j in jacobians]
    ranks = [float(j.square().sum() / torch.linalg.matrix_norm(j, 2) ** 2) for j in jacobians]
    spread = [h.var(0, unbiased=False).mean().sqrt() for h in (first, last)]
    width = min(first.shape[1], last.shape[1])
    return (
        math.log(spread[1] / spread[0]),
        0.5 * math.log(sum(squares) / len(squares) / width),
        float(spread[1] / last.square().mean().sqrt()),
        sum(ranks) / len(ranks),
    )


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU, nn.GELU])
@pytest.mark.parametrize("gain", [0.7, 1.5])
def test_against_the_dense_jacobian(act: type[nn.Module], gain: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(20, 20), act())], nn.Linear(20, 3)).double()
    for layer in net[::2]:
        nn.init.orthogonal_(layer.weight, gain)
    x = torch.randn(16, 20, dtype=torch.float64)
    forward, backward, separation, rank = dense(net, x)
    vitals = vital_signs(net, x, trace(net, x))
    assert vitals.forward == pytest.approx(forward, abs=1e-9)
    assert vitals.separation == pytest.approx(separation, rel=1e-9)
    assert vitals.backward == pytest.approx(backward, abs=0.15)  # eight random cotangents per sample
    assert vitals.rank == pytest.approx(rank, rel=0.3)  # both, and six power steps


def test_dead_gradient_is_zero_not_unobserved() -> None:
    net = nn.Sequential(*[m for _ in range(80) for m in (nn.Linear(8, 8), nn.Sigmoid())])
    x = torch.randn(16, 8)
    vitals = vital_signs(net, x, trace(net, x))
    assert vitals.backward == -math.inf
    assert any("shrinks" in text for text in vitals.failures())


def test_nothing_to_observe() -> None:
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)), torch.randn(4, 3)
    assert vital_signs(net, x, trace(net, x)) == Vitals()
    assert Vitals().failures() == ()
    assert "not observed" in str(Vitals())


@pytest.mark.parametrize(
    ("vitals", "words"),
    [
        (Vitals(forward=4.0), "the signal forward grows"),
        (Vitals(forward=-math.inf), "the signal forward shrinks"),
        (Vitals(backward=math.nan), "the gradient backward is not finite"),
        (Vitals(separation=0.01), "samples look alike"),
    ],
)
def test_each_failure_has_words(vitals: Vitals, words: str) -> None:
    (text,) = vitals.failures()
    assert words in text


def test_low_rank_only_warns() -> None:
    vitals = Vitals(0.0, 0.0, 0.5, 1.2)
    assert not vitals.failures()
    assert "stable rank 1.2" in vitals.warnings()[0]
    assert not Vitals(0.0, 0.0, 0.5, 3.1).warnings()


def test_what_was_not_observed_is_not_called_good():
    done = initialize_(nn.Linear(3, 4), torch.randn(5, 3))
    assert str(done).splitlines()[-1].startswith("not verified")
    assert done.ok is None
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    assert str(initialize_(net, torch.randn(64, 3))).splitlines()[-1] == "ok"


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Bilinear(8, 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x, x)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(*[Bilinear() for _ in range(6)]),
        nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(8, 8), nn.Softmax(-1))]),
    ],
    ids=["bilinear", "softmax"],
)
def test_networks_in_which_nothing_can_be_observed(net: nn.Module) -> None:
    done = initialize_(net, torch.randn(16, 8))
    assert done.ok is None
    assert not done.after.failures()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell, nn.GRU, nn.GRUCell])
def test_chrono_times_are_uniform_up_to_the_length(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = kind(3, 2000)
    weight = net.get_parameter("weight_hh" if "Cell" in kind.__name__ else "weight_hh_l0").clone()
    chrono_(net, 101)
    suffix = "" if "Cell" in kind.__name__ else "_l0"
    total = (net.get_parameter(f"bias_ih{suffix}") + net.get_parameter(f"bias_hh{suffix}")).detach()
    times = total[2000:4000].exp()  # forget gate of an LSTM, update gate of a GRU
    quantiles = torch.quantile(times, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    torch.testing.assert_close(quantiles, torch.tensor([1.0, 25.75, 50.5, 75.25, 100.0]), rtol=0.1, atol=0.5)
    if "LSTM" in kind.__name__:
        torch.testing.assert_close(total[:2000], -total[2000:4000])
    assert torch.equal(net.get_parameter("weight_hh" + suffix), weight)


def test_memory_reaches_over_a_hundred_steps() -> None:
    """The gradient of the last cell state with respect to the first input, by plain autograd."""
    gains = []
    for chrono in (False, True):
        torch.manual_seed(0)
        net = nn.LSTM(8, 32)
        if chrono:
            chrono_(net, 100)
        x = torch.randn(100, 4, 8, requires_grad=True)
        _, (_, cell) = net(x)
        cell.square().sum().backward()
        gains.append(float(x.grad[0].norm() / x.grad[-1].norm()))
    assert gains[0] < 1e-8
    assert gains[1] > 1e-3


def test_chrono_leaves_what_is_kept() -> None:
    net = nn.ModuleList([nn.LSTM(2, 3), nn.LSTM(2, 3)])
    before = net[0].bias_ih_l0.clone()
    chrono_(net, 10, keep=["0"])
    assert torch.equal(net[0].bias_ih_l0, before)


@pytest.mark.parametrize(
    ("net", "steps", "words"),
    [
        (nn.LSTM(2, 3), 2, "need no long memory"),
        (nn.RNN(2, 3), 9, "no gate"),
        (nn.LSTM(2, 3, bias=False), 9, "no gate"),
    ],
)
def test_chrono_refuses(net: nn.Module, steps: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        chrono_(net, steps)
