"""The gradient that a site passes on, and its units, where autograd shows them in an odd way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import close, double, ln, site, watch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import unvanish

pytestmark = pytest.mark.usefixtures("both_readings")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class LowRank(nn.Module):
    """W + B A, as LoRA merges it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.up, self.down = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.up @ self.down)


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.up @ self.down)


class Middle(nn.Module):
    """Keeps what goes into the layer in the middle, and what comes out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(6, 6), layer, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.into = self.first(x).tanh()
        self.out = self.layer(self.into)
        return self.head(self.out.tanh())


WEIGHTS: dict[str, Callable[[], nn.Module]] = {
    "spectral": lambda: parametrizations.spectral_norm(nn.Linear(6, 6)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 6)),
    "weight-norm": lambda: parametrizations.weight_norm(nn.Linear(6, 6)),
    "low-rank": LowRank,
    "product": Product,
    "plain": lambda: nn.Linear(6, 6),
}


@pytest.mark.parametrize("weight", list(WEIGHTS))
def test_what_goes_to_a_computed_weight_is_not_passed_on(weight: str) -> None:
    model, x = Middle(WEIGHTS[weight]()).eval(), torch.randn(5, 6)
    sites = watch(model, lambda m: m(x).square().sum(), 5)
    twin = double(model)
    loss = twin(x.double()).square().sum()
    into, out = torch.autograd.grad(loss, [twin.into, twin.out])
    found = [s for s in sites if s.kind == "linear" and s.name.startswith("layer") and s.shape == (5, 6)]
    close(found[-1].log_grad_out, ln(out))
    close(found[-1].log_grad_in, ln(into))


def test_a_computed_weight_of_the_first_layer_has_no_data_below() -> None:
    model, x = nn.Sequential(Product(), nn.Tanh(), nn.Linear(6, 1)), torch.randn(5, 6)
    (found,) = [s for s in watch(model, lambda m: m(x).sum(), 5) if s.name == "0" and s.shape == (5, 6)]
    assert found.log_grad_in is None


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda h: h[:, :].tanh_(),
    "part": lambda h: h[:, 2:].tanh_(),
    "view": lambda h: h.view(5, 2, 3).relu_(),
    "zeroed": lambda h: h[:, 2:].zero_(),
    "assigned": lambda h: h[:, :3].copy_(3 * h[:, 3:]),
}


@pytest.mark.parametrize("how", list(IN_PLACE))
def test_an_op_in_place_on_a_part_is_a_site_of_its_own(how: str) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.into = self.first(x).tanh()
            self.out = self.middle(self.into)
            h = self.out * 1.0  # the gradient of what is written over is not kept
            IN_PLACE[how](h)
            self.after = h * 1.0
            return self.head(self.after)

    model, x = Written(), torch.randn(5, 6)
    sites = watch(model, lambda m: m(x).square().sum(), 5)
    twin = double(model)
    loss = twin(x.double()).square().sum()
    after, out, into = torch.autograd.grad(loss, [twin.after, twin.out, twin.into])
    (written,) = (s for s in sites if s.op == "copy_slices")
    close(written.log_grad_out, ln(after))
    linear = site(sites, "middle", "linear")
    close(linear.log_grad_out, ln(out))
    close(linear.log_grad_in, ln(into))


def test_units_of_what_was_done_in_place_to_a_part_are_said_not_to_be_observed() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h[:, :].tanh_()
            return self.head(h)

    batch = torch.randn(8, 6), torch.randn(8, 1)
    flow = unvanish.diagnose(Sliced(), nn.MSELoss(), [batch] * 2, steps=1).flow
    assert any("copy_slices" in name for name in flow.unobserved)


MOVES: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor], int]] = {
    "channels to the end": (lambda: nn.Conv2d(2, 6, 3), lambda h: h.permute(0, 2, 3, 1), 3),
    "there and back": (lambda: nn.Conv2d(2, 6, 3), lambda h: h.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 1),
    "patches to tokens": (lambda: nn.Conv2d(2, 6, 3), lambda h: h.flatten(2).transpose(1, 2), 2),
    "features before time": (lambda: nn.Linear(5, 6), lambda h: h.flatten(1, 2).transpose(1, -1), 1),
    "nowhere": (lambda: nn.Linear(5, 6), lambda h: h, 3),
}


@pytest.mark.parametrize("move", list(MOVES))
def test_dead_units_are_counted_along_the_axis_they_were_moved_to(move: str) -> None:
    make, moved, axis = MOVES[move]
    layer = make()
    with torch.no_grad():
        layer.bias[:2] = -100.0  # two of six never fire
        layer.bias[2:] = 1.0

    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            self.fired = torch.relu(moved(self.layer(x)))
            return self.fired

    model, x = Moved(), torch.randn(4, 2, 5, 5)
    sites = watch(model, lambda m: m(x).square().sum(), 4)
    rest = [dim for dim in range(model.fired.ndim) if dim != axis]
    expected = float((model.fired.amax(dim=rest) == 0).float().mean())
    assert expected == pytest.approx(2 / 6)
    assert next(s for s in sites if s.op == "relu").dead == pytest.approx(expected)


def test_a_cast_that_rounds_a_gradient_to_zero_does_it_after_the_op_that_passed_it_on() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3).half()

        def forward(self, x: Tensor) -> Tensor:
            self.wide = self.layer(x.half()).float()
            return self.wide.log_softmax(-1)

    model, x = Half(), torch.randn(5, 6)
    sites = watch(model, lambda m: 1e-9 * m(x)[:, 0].sum(), 5)
    wide = model.wide.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(1e-9 * wide.log_softmax(-1)[:, 0].sum(), [wide])
    close(next(s for s in sites if s.op == "log_softmax").log_grad_in, ln(gradient), 1e-3)
    assert site(sites, "layer").log_grad_out == -float("inf")


def test_celu_is_an_activation() -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.CELU(), nn.Linear(8, 1)), torch.randn(5, 6)
    with torch.no_grad():
        model[0].bias[:3] = -100.0
    found = site(watch(model, lambda m: m(x).sum(), 5), "1")
    assert (found.op, found.kind, found.dead) == ("celu", "activation", 3 / 8)


def test_gradients_of_weights_that_no_optimizer_holds_do_not_pile_up() -> None:
    model, batch = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)), (torch.randn(8, 6), torch.randn(8, 1))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=1e-9)
    flow = unvanish.diagnose(model, nn.MSELoss(), [batch] * 2, optimizer, steps=20).flow
    seen = [p.log_grad for s in flow.snapshots for p in s.parameters if p.name == "0.weight"]
    model.zero_grad()
    F.mse_loss(model(batch[0]), batch[1]).backward()
    assert model[0].weight.grad is not None
    assert len(seen) > 2
    for log in seen:
        close(log, ln(model[0].weight.grad), 1e-3)


def test_updates_of_complex_weights_are_measured() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) @ self.weight)

    model, batch = Spectral(), (torch.randn(8, 6), torch.randn(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (found,) = unvanish.diagnose(model, nn.MSELoss(), [batch] * 2, optimizer, steps=1).flow.parameters
    before = model.weight.detach().clone()
    F.mse_loss(model(batch[0]), batch[1]).backward()
    optimizer.step()
    close(found.log_update, ln(model.weight.detach() - before), 1e-3)
    assert found.unchanged == 0
