"""The numbers of a Site against float64 oracles, on small nets of each kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle import check_modules, close, double, ln, output_gradients, site, watch
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.types import Site

pytestmark = pytest.mark.usefixtures("both_readings")

SLOPE = {"tanh": 0.0, "sigmoid": math.log(0.25), "relu": 0.5 * math.log(0.5)}
ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mlp(activation: str, depth: int = 4, width: int = 12) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(7 if i == 0 else width, width), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_number_of_a_plain_mlp(activation: str) -> None:
    model, x, y = mlp(activation), 2 * torch.randn(9, 7), torch.randint(3, (9,))
    expected = output_gradients(double(model), lambda m: F.cross_entropy(m(x.double()), y))
    sites = watch(model, lambda m: F.cross_entropy(m(x), y), 9)
    assert [s.name for s in sites][:9] == [str(i) for i in range(9)]
    for i in range(9):
        s, (value, gradient) = site(sites, str(i)), expected[str(i)][0]
        close(s.log_grad_out, ln(gradient))
        assert s.kind == ("activation" if i % 2 else "linear")
        assert s.parameter == (None if i % 2 else f"{i}.weight")
        assert s.shape == tuple(value.shape)
        assert (s.order, s.depth, s.inputs) == (i, i + 1, (i - 1,) if i else ())
        if i:
            close(s.log_grad_in, ln(expected[str(i - 1)][0][1]))
        check_moments(s, value)
    check_units(sites, expected, activation)
    assert [s.op for s in sites[9:]] == ["log_softmax", "nll"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_on_sequences_shows_what_the_view_at_its_end_does(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(5, 8, bias), nn.Tanh(), nn.Linear(8, 6, bias), nn.Flatten(), nn.Linear(24, 3))
    x, y = torch.randn(9, 4, 5), torch.randint(3, (9,))
    expected = output_gradients(double(model), lambda m: F.cross_entropy(m(x.double()), y))
    sites = watch(model, lambda m: F.cross_entropy(m(x), y), 9)
    for name in ("0", "1", "2", "4"):
        value, gradient = expected[name][0]
        check_moments(site(sites, name), value)
        close(site(sites, name).log_grad_out, ln(gradient))


def test_a_view_changed_in_place_is_not_what_was_viewed() -> None:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).transpose(1, 2).mul_(2.0)  # type: ignore[no-any-return]

    model, x = nn.Sequential(Doubling(), nn.Flatten(), nn.Linear(32, 1)), torch.randn(9, 4, 5)
    sites = watch(model, lambda m: m(x).square().mean(), 9)
    assert site(sites, "0.inner").forward is None  # not the doubled numbers


def check_moments(s: Site, value: Tensor) -> None:
    array = value.numpy()
    assert s.forward is not None
    assert s.forward.count == array.size
    close(s.forward.rms, float(np.sqrt((array**2).mean())))
    close(s.forward.mean, float(array.mean()))
    std = float(np.sqrt(array.var(axis=0).mean()))
    close(s.forward.batch_std, std)
    close(s.forward.separation, std / float(np.sqrt((array**2).mean())))


def check_units(sites: tuple[Site, ...], expected: dict[str, list[tuple[Tensor, Tensor]]], activation: str) -> None:
    """S, B, dead and saturated units of the activations, by brute force."""
    for i in (1, 3, 5, 7):
        s, linear = site(sites, str(i)), site(sites, str(i - 1))
        before, after = expected[str(i - 1)][0][0].numpy(), expected[str(i)][0][0].numpy()
        slope = {"tanh": 1 - after**2, "sigmoid": after * (1 - after), "relu": (before > 0) * 1.0}[activation]
        dead = sum(all(abs(d) <= 1e-6 for d in slope[:, unit]) for unit in range(slope.shape[1])) / slope.shape[1]
        assert s.dead == pytest.approx(dead)
        best = {"tanh": 1.0, "sigmoid": 0.25}.get(activation)
        assert s.saturated == (None if best is None else pytest.approx((slope < 0.05 * best).mean()))
        close(s.reference, SLOPE[activation])
        close(linear.reference, SLOPE[activation])
        lost = SLOPE[activation] - (ln(expected[str(i - 1)][0][1]) - ln(expected[str(i)][0][1]))
        close(s.saturation_loss, lost)
        if i > 1:
            gain = ln(expected[str(i - 2)][0][1]) - ln(expected[str(i - 1)][0][1])
            close(linear.weight_loss, -SLOPE[activation] - gain)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_losses_add_up_exactly_to_what_the_gradient_lost(activation: str) -> None:
    """Section 4 of the method: the sum over layers of S + B is ln(||g_last|| / ||g_first||), in the same numbers."""
    model, x, y = mlp(activation, 12), torch.randn(16, 7), torch.randint(3, (16,))
    sites = watch(model, lambda m: F.cross_entropy(m(x), y), 16)
    first, last = site(sites, "0"), site(sites, "23")
    s = sum(site(sites, str(i)).saturation_loss or 0.0 for i in range(1, 24, 2))
    b = sum(site(sites, str(i)).weight_loss or 0.0 for i in range(2, 24, 2))
    assert first.log_grad_out is not None
    assert last.log_grad_out is not None
    reference = 12 * SLOPE[activation] - 11 * SLOPE[activation]  # the first layer's B has no gradient to be read from
    assert s + b == pytest.approx(last.log_grad_out - first.log_grad_out + reference, abs=1e-9)


def test_saturated_share_of_large_inputs() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))
    x = 10 * torch.randn(50, 5)
    value = torch.tanh(model[0](x)).detach().double().numpy()
    sites = watch(model, lambda m: m(x).square().mean(), 50)
    assert site(sites, "1").saturated == pytest.approx((1 - value**2 < 0.05).mean(), abs=1e-6)


def test_dead_relus_counted_and_not_guessed_from_norms() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].bias[:3] = -1e3
    sites = watch(model, lambda m: m(torch.randn(20, 5)).square().mean(), 20)
    assert site(sites, "1").dead == pytest.approx(3 / 8)


def test_raw_parameters_and_functions_only() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.b1 = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.zeros(6))
            self.w2 = nn.Parameter(torch.randn(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            self.u = x @ self.w1 + self.b1
            self.h = torch.tanh(self.u)
            return self.h @ self.w2

    model, x = Net(), torch.randn(8, 4)
    twin = double(model)
    loss = twin(x.double()).pow(2).sum()
    g_u, g_h = torch.autograd.grad(loss, [twin.u, twin.h])
    sites = watch(model, lambda m: m(x).pow(2).sum(), 8)
    first, second = (next(s for s in sites if s.parameter == name) for name in ("w1", "w2"))
    act = next(s for s in sites if s.op == "tanh")
    assert (first.kind, second.kind, act.kind) == ("linear", "linear", "activation")
    assert (first.name, second.name) == ("w1", "w2")
    close(first.log_grad_out, ln(g_u))
    close(act.log_grad_out, ln(g_h))
    close(second.log_grad_in, ln(g_h))
    close(act.log_grad_in, ln(g_u))
    check_moments(act, twin.h.detach())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_batch_norm_and_in_place_relu(layout: torch.memory_format) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    ).to(memory_format=layout)  # fmt: skip
    x = torch.randn(5, 3, 10, 10).to(memory_format=layout)
    plain = double(nn.Sequential(*(nn.ReLU() if isinstance(m, nn.ReLU) else m for m in model)))
    with torch.no_grad():
        model[4].bias[1] = plain[4].bias[1] = -100.0
    expected = output_gradients(plain, lambda m: m(x.double()).square().sum())
    sites = watch(model, lambda m: m(x).square().sum(), 5)
    kinds = {"0": "convolution", "1": "normalization", "2": "activation", "4": "convolution", "5": "activation"}
    for name, kind in kinds.items():
        s, (value, gradient) = site(sites, name), expected[name][0]
        assert s.kind == kind
        close(s.log_grad_out, ln(gradient), 1e-3)
        assert s.forward is not None
        close(s.forward.rms, float(value.square().mean().sqrt()), 1e-3)
    assert site(sites, "1").normalized_count == 5 * 10 * 10
    assert site(sites, "0").reference == pytest.approx(SLOPE["relu"])  # through the normalisation
    after = expected["5"][0][0].numpy()
    dead = np.mean([(after[:, c] <= 0).all() for c in range(4)])
    assert site(sites, "5").dead == pytest.approx(dead)
    assert dead >= 0.25


def test_normalisations_know_over_how_many_elements() -> None:
    model = nn.Sequential(nn.Conv1d(4, 6, 1), nn.GroupNorm(3, 6), nn.Flatten(), nn.LayerNorm(30))
    sites = watch(model, lambda m: m(torch.randn(2, 4, 5)).pow(3).sum(), 2)
    assert site(sites, "1").normalized_count == 2 * 5
    assert site(sites, "3").normalized_count == 30


def test_frozen_batch_norm_statistics_are_no_count() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    sites = watch(model, lambda m: m(torch.randn(6, 3)).pow(2).sum(), 6)
    assert site(sites, "1").normalized_count is None


class Residual(nn.Module):
    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.joined = joined
        self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8 if joined else 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        f = torch.tanh(self.b(h))
        self.h, self.f = h, f
        return self.out(torch.cat([h, f], 1) if self.joined else h + f)


@pytest.mark.parametrize("joined", [False, True])
def test_branches_that_meet(joined: bool) -> None:
    model, x = Residual(joined), torch.randn(6, 4)
    twin = double(model)
    loss = twin(x.double()).square().sum()
    g_h, g_f = torch.autograd.grad(loss, [twin.h, twin.f])
    sites = check_modules(model, lambda m: m(x).square().sum(), lambda m: m(x.double()).square().sum())
    merge = next(s for s in sites if s.kind == "merge")
    assert merge.op == ("cat" if joined else "add")
    assert len(merge.inputs) == 2
    first, second = (s for s in sites if s.op == "tanh")
    close(first.log_grad_out, ln(g_h))  # both branches added up
    close(second.log_grad_out, ln(g_f))
    passed = g_f * (1 - twin.f.detach() ** 2) @ twin.b.weight.detach()
    close(site(sites, "b").log_grad_in, ln(passed))  # what b itself passes on, without the skip path


def test_shared_module_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    model, x = Twice(), torch.randn(4, 5)
    expected = output_gradients(double(model), lambda m: m(x.double()).pow(2).sum())["layer"]
    sites = watch(model, lambda m: m(x).pow(2).sum(), 4)
    for call in (0, 1):
        close(site(sites, "layer", "linear", call).log_grad_out, ln(expected[call][1]))


def test_tuple_and_dict_outputs() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, object]:
            return {"left": self.a(x), "rest": (self.b(x), None)}

    model, x = Many(), torch.randn(5, 3)

    def run(m: nn.Module) -> Tensor:
        out = m(x)
        return out["left"].square().sum() + 3 * out["rest"][0].abs().sum()

    sites = watch(model, run, 5)
    close(site(sites, "a").log_grad_out, ln(2 * double(model).a(x.double())))
    close(site(sites, "b").log_grad_out, math.log(3 * math.sqrt(10)))


def test_weight_tying_and_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(11, 6)
            self.mix = nn.Linear(6, 6)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.tanh(self.mix(self.words(ids)))).flatten(0, 1)

    model, ids, y = Tied(), torch.randint(11, (4, 5)), torch.randint(11, (20,))
    sites = check_modules(model, lambda m: F.cross_entropy(m(ids), y), lambda m: F.cross_entropy(m(ids), y))
    assert site(sites, "words").kind == "embedding"
    assert site(sites, "head").kind == "linear"


def test_sparse_embedding() -> None:
    model = nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Linear(4, 1))
    sites = check_modules(model, *[lambda m: m(torch.arange(6)).square().sum()] * 2)
    assert site(sites, "0").kind == "embedding"


def test_frozen_parts_are_not_sites_and_what_trains_behind_them_is() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    for p in model[:3].parameters():
        p.requires_grad_(False)
    x = torch.randn(6, 3)
    assert [s.name for s in watch(model, lambda m: m(x).sum(), 6)][:1] == ["4"]
    for p in model[0].parameters():
        p.requires_grad_(True)
    sites = check_modules(model, lambda m: m(x).square().sum(), lambda m: m(x.double()).square().sum())
    assert site(sites, "2").kind == "linear"  # frozen weights, yet the gradient passes through them
    assert site(sites, "2").log_gain is not None


def test_losses_that_are_summed_up() -> None:
    model, x, y = mlp("tanh"), torch.randn(6, 7), torch.randint(3, (6,))

    def run(m: nn.Module, x: Tensor) -> Tensor:
        out = m(x)
        return (
            F.cross_entropy(out, y) + 0.1 * out.square().mean() + 1e-3 * sum(p.square().sum() for p in m.parameters())
        )

    sites = check_modules(model, lambda m: run(m, x), lambda m: run(m, x.double()))
    assert not any(s.kind == "linear" and s.parameter is None for s in sites)


def test_lora_and_factorised_weights_are_weights() -> None:
    class Factor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u, self.v = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ (self.u @ self.v))

    sites = watch(Factor(), lambda m: m(torch.randn(3, 6)).sum(), 3)
    act = next(s for s in sites if s.kind == "activation")
    assert next(s for s in sites if s.order in act.inputs).kind == "linear"


def test_modules_named_module_keep_their_names() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.my_module = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return self.my_module(x)

    x = torch.randn(2, 3)
    assert {s.name for s in watch(Own(), lambda m: m(x).sum(), 2)} >= {"my_module.0", "my_module.1"}
    assert {s.name for s in watch(nn.DataParallel(Own()), lambda m: m(x).sum(), 2)} >= {"my_module.0", "my_module.1"}
