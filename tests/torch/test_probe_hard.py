"""Programs that are hard to watch: the user's backward pass never breaks, and what cannot be seen is None, never 0."""

from __future__ import annotations

import gc
import math
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from oracle import close, double, ln, output_gradients, site, watch, watch_all
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import unvanish
from unvanish.torch.probe.naming import names_of
from unvanish.torch.probe.probe import Probe

pytestmark = pytest.mark.usefixtures("both_readings")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def stack(depth: int = 3, width: int = 6) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Linear(6, 6), stack(), nn.Linear(6, 1)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.head(checkpoint(self.body, h, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    model, x = Checkpointed(reentrant), torch.randn(5, 6)
    model(x).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    sites = watch(model, lambda m: m(x).square().sum(), 5)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))
    inner = [s for s in sites if s.name.startswith("body")]
    assert all(s.dead is None and s.saturated is None for s in inner if s.kind == "activation")
    straight = double(model)
    expected = output_gradients(straight, lambda m: m.head(m.body(torch.relu(m.first(x.double())))).square().sum())
    close(site(sites, "head").log_grad_out, ln(expected["head"][0][1]))
    close(site(sites, "first", "linear").log_grad_out, ln(expected["first"][0][1]))
    if not reentrant:
        for name in ("body.0", "body.1", "body.5"):
            close(site(sites, name).log_grad_out, ln(expected[name][0][1]))


def test_what_a_reentrant_checkpoint_hides_is_said_not_to_be_observed() -> None:
    batch = torch.randn(8, 6), torch.randn(8, 1)
    hidden, shown = (
        unvanish.diagnose(Checkpointed(how), nn.MSELoss(), [batch] * 2, steps=1).flow.unobserved
        for how in (True, False)
    )
    assert [name for name in hidden if "use_reentrant=False" in name] == [
        "first:checkpoint_function: all inside, for use_reentrant=False is not set"
    ]
    assert not any("use_reentrant" in name for name in shown)


def test_saved_tensors_on_cpu_hooks_are_read_once_only() -> None:
    model, x = stack(), torch.randn(4, 6)
    with torch.autograd.graph.save_on_cpu():
        sites = watch(model, lambda m: m(x).square().sum(), 4)
    assert site(sites, "1").dead is None
    assert site(sites, "1").log_grad_out is not None


def test_retained_graph_is_left_without_hooks() -> None:
    model, x = stack(), torch.randn(4, 6)
    probe = Probe(names_of(model), 4)
    with probe.watching():
        loss = model(x).square().sum()
    probe.attach(loss)
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in model.parameters()]
    found, _ = probe.sites()
    held = len(probe._norms)
    loss.backward()
    assert all(s.log_grad_out is not None for s in found)
    assert len(probe._norms) == held == 0
    assert all(torch.allclose(p.grad, 2 * g) for p, g in zip(model.parameters(), first, strict=True))


def test_module_hooks_are_gone_even_after_an_error() -> None:
    from torch.nn.modules import module as nn_module

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("the user's own error")

    model = nn.Sequential(nn.Linear(2, 2), Broken())
    probe = Probe(names_of(model), 2)
    taken = nn.Module._call_impl
    with pytest.raises(KeyError, match="own error"), probe.watching():
        model(torch.randn(2, 2))
    assert nn.Module._call_impl is taken
    assert not nn_module._global_forward_hooks
    assert not nn_module._global_forward_pre_hooks


class Reversing(nn.Module):
    """Changes the gradient on its way from the activation to the layer below, as gradient reversal and clipping do."""

    def __init__(self, factor: float | None) -> None:
        super().__init__()
        self.below, self.above, self.factor = nn.Linear(5, 6), nn.Linear(6, 3), factor

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.below(x)
        if self.factor is not None:
            hidden.register_hook(lambda gradient: self.factor * gradient)
        return self.above(torch.tanh(hidden))


@pytest.mark.parametrize("factor", [None, -10.0])
def test_hooks_on_tensors_change_what_arrives(factor: float | None) -> None:
    model, x, y = Reversing(factor), torch.randn(8, 5), torch.randint(3, (8,))
    sites = watch(model, lambda m: F.cross_entropy(m(x), y), 8)
    wide = double(model)
    hidden = wide.below(x.double()).detach().requires_grad_()
    (arrives,) = torch.autograd.grad(F.cross_entropy(wide.above(torch.tanh(hidden)), y), hidden)
    close(site(sites, "below").log_grad_out, ln(arrives * (factor or 1.0)))
    assert model.below.bias.grad is not None
    torch.testing.assert_close(model.below.bias.grad.double(), (arrives * (factor or 1.0)).sum(dim=0))


def test_gradients_that_come_out_of_order() -> None:
    """As from several devices: here what lies below is gone through first, and again from above."""
    model, x, y = stack(), torch.randn(8, 6), torch.randint(6, (8,))
    expected = watch(model, lambda m: F.cross_entropy(m(x), y), 8)
    model.zero_grad()
    probe = Probe(names_of(model), 8)
    with probe.watching():
        middle = model[:3](x)
        loss = F.cross_entropy(model[3:](middle), y)
    probe.attach(loss)
    middle.backward(torch.ones_like(middle), retain_graph=True)
    loss.backward()
    found, _ = probe.sites()
    assert found == tuple(expected)


def test_an_error_that_the_model_catches_does_not_confuse_the_names() -> None:
    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fragile, self.safe, self.last = Fragile(), nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            try:
                x = self.fragile(x)
            except ValueError:
                x = torch.tanh(self.safe(x))
            return self.last(x)

    sites = watch(nn.Sequential(Careful()), lambda m: m(torch.randn(2, 3)).sum(), 2)
    assert [s.name for s in sites if s.kind == "linear"] == ["0.safe", "0.last"]
    assert next(s for s in sites if s.op == "tanh").name == "0.safe:tanh"


def test_nothing_is_kept_alive() -> None:
    model, x = stack(), torch.randn(4, 6)
    probe = Probe(names_of(model), 4)
    alive = []
    with probe.watching():
        out = model(x)
        alive.append(weakref.ref(out))
        loss = out.square().sum()
    probe.attach(loss)
    loss.backward()
    probe.sites()
    probe.scopes.output = None
    del out, loss
    gc.collect()
    assert alive[0]() is None


def test_bfloat16_autocast() -> None:
    model, x = stack(), torch.randn(16, 6)
    expected = output_gradients(double(model), lambda m: m(x.double()).square().mean())

    def run(m: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = m(x)
        return out.float().square().mean()

    sites = watch(model, run, 16)
    for name in ("0", "2", "4"):
        s = site(sites, name, "linear")
        assert s.dtype == "bfloat16"
        close(s.log_grad_out, ln(expected[name][0][1]), 0.05)
        assert s.zero_gradient == 0.0
        assert s.parameter == f"{name}.weight"


def test_half_precision_model_whose_gradient_underflows() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).half(), torch.randn(4, 8).half()
    sites = watch(model, lambda m: m(x).float().mean() * 1e-9, 4)
    s = site(sites, "0")
    assert s.dtype == "float16"
    assert s.zero_gradient == 1.0
    assert s.log_grad_out == -math.inf
    assert site(sites, "2").zero_gradient == 1.0
    scaled = site(watch(model, lambda m: m(x).float().mean(), 4), "0")
    assert scaled.zero_gradient is not None
    assert scaled.zero_gradient < 1
    assert scaled.log_grad_out is not None
    assert scaled.log_grad_out > -math.inf


def test_complex_parameters() -> None:
    class Phase(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))
            self.v = nn.Parameter(torch.randn(4, 1, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            self.h = x @ self.w
            return torch.tanh(self.h) @ self.v

    model, x = Phase(), torch.randn(5, 3, dtype=torch.complex64)
    sites = watch(model, lambda m: m(x).abs().square().sum(), 5)
    (gradient,) = torch.autograd.grad(model(x).abs().square().sum(), [model.h])
    first = next(s for s in sites if s.parameter == "w")
    close(first.log_grad_out, ln(gradient))
    act = next(s for s in sites if s.op == "tanh")
    assert act.dead is None
    assert act.log_grad_out is not None


class Pinn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def residual(model: nn.Module, x: Tensor) -> Tensor:
    u = model(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    return (second + u).square().mean() + u[0].square().sum()


def test_double_backward_of_a_pinn() -> None:
    model = Pinn()
    x = torch.linspace(0, 1, 12).unsqueeze(1).requires_grad_()
    residual(model, x).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    x.grad = None
    sites = watch(model, lambda m: residual(m, x), 12, (x,))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))
    wide = x.detach().double().requires_grad_()
    expected = output_gradients(double(model), lambda m: residual(m, wide))
    for name in ("body.0", "body.2", "body.4"):
        s = next(s for s in sites if s.name == name and s.kind == "linear")
        close(s.log_grad_out, ln(expected[name][0][1]), 1e-3)
    tanhs = [s for s in sites if s.name in ("body.1", "body.3") and s.kind == "activation"]
    assert len(tanhs) == 2
    assert all(s.dead == 0 for s in tanhs)


def test_five_thousand_layers() -> None:
    model = stack(5000, 4)
    sites = watch(model, lambda m: m(torch.randn(2, 4)).square().sum(), 2)
    assert len([s for s in sites if s.kind == "linear"]) == 5000
    assert sites[-1].depth >= 10_000


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gradients_that_leave_the_squares_of_float32(scale: float) -> None:
    model, x = stack(), torch.randn(4, 6)
    expected = output_gradients(double(model), lambda m: m(x.double()).square().sum() * scale)
    sites = watch(model, lambda m: m(x).square().sum() * scale, 4)
    for name in ("0", "1", "5"):
        close(site(sites, name).log_grad_out, ln(expected[name][0][1]), 1e-3)


def test_exact_zero_is_minus_infinity() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].bias.fill_(-1e4)
    sites = watch(model, lambda m: m(torch.randn(5, 3)).square().sum(), 5)
    assert site(sites, "0").log_grad_out == -math.inf
    assert site(sites, "1").dead == 1.0
    assert site(sites, "1").log_gain == -math.inf
    assert site(sites, "1").saturation_loss == math.inf


def test_nan_is_nan_and_not_zero_and_not_dead() -> None:
    model, x = stack(), torch.randn(4, 6)
    x[0, 0] = math.nan
    sites = watch(model, lambda m: m(x).square().sum(), 4)
    s = site(sites, "0")
    assert s.log_grad_out is not None
    assert math.isnan(s.log_grad_out)
    assert s.forward is not None
    assert s.forward.nonfinite == 6
    assert site(sites, "1").dead == 0.0


def test_bad_gradients_are_counted_where_they_arrive() -> None:
    model, x, weight = stack(), torch.randn(4, 6), torch.ones(4, 6)
    weight[1, :2] = torch.tensor([math.nan, math.inf])
    arrived: list[Tensor] = []

    def loss(m: nn.Module) -> Tensor:
        output = m(x)
        output.register_hook(arrived.append)
        return (output * weight[:, : output.shape[1]]).sum()

    sites = watch(model, loss, 4)
    last = [s for s in sites if s.kind == "linear"][-1]
    assert last.nonfinite_gradient == int((~torch.isfinite(arrived[0])).sum()) > 0
    assert sites[-1].nonfinite_gradient == 0


def test_infinite_gradient_is_infinite() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3)
    sites = watch(model, lambda m: m(x).sum() * torch.tensor(math.inf), 2)
    assert site(sites, "0").log_grad_out == math.inf


def test_a_batch_without_samples() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    sites = watch(model, lambda m: m(torch.zeros(0, 3)).sum(), 0)
    assert site(sites, "0").log_grad_out == -math.inf
    assert site(sites, "1").dead is None


def test_unused_output_of_a_split_is_not_zero() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            left, _ = self.layer(x).chunk(2, dim=1)
            return torch.tanh(left)

    model, x = Half(), torch.randn(3, 4)
    expected = output_gradients(double(model), lambda m: m(x.double()).sum())
    close(site(watch(model, lambda m: m(x).sum(), 3), "layer", "linear").log_grad_out, ln(expected["layer"][0][1]))


def test_per_sample_gradients_by_vmap_do_not_disturb() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)

    def run(m: nn.Module) -> Tensor:
        per_sample = torch.func.vmap(lambda row: m(row).square().sum())(x)
        return per_sample.mean() + m(x).mean()

    sites = watch(model, run, 4)
    assert any(s.kind == "linear" and s.log_grad_out is not None for s in sites)


def test_custom_function_is_named_and_measured() -> None:
    class Clip(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clamp(-1, 1)

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return 0.5 * gradient

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Clip.apply(self.a(x)))

    sites = watch(Net(), lambda m: m(torch.randn(4, 3)).square().sum(), 4)
    clip = next(s for s in sites if s.op == "clip")
    close(clip.log_gain, math.log(0.5))
    assert clip.kind == "other"


@pytest.mark.parametrize("parametrization", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_weights_stay_on_the_weight_side(parametrization: str) -> None:
    register = getattr(nn.utils.parametrizations, parametrization)
    model = nn.Sequential(register(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 1))
    sites = watch(model, lambda m: m(torch.randn(6, 5)).square().sum(), 6)
    act = site(sites, "1")
    below = next(s for s in sites if s.order in act.inputs)
    assert below.kind == "linear"
    assert below.shape == (6, 5)
    assert [s.kind for s in sites if s.shape == (6, 5)] == ["linear", "activation"]


def test_gelu_units_against_numpy() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 1)), torch.randn(30, 4)
    with torch.no_grad():
        model[0].bias[0] = -100.0
    sites = watch(model, lambda m: m(x).sum(), 30)
    u = double(model)[0](x.double()).detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.gelu(u).sum(), [u])
    dead = np.mean([(slope[:, k].abs() <= 1e-6).all() for k in range(5)])
    assert site(sites, "1").dead == pytest.approx(dead)
    assert site(sites, "1").saturated is None


def test_two_backward_passes_of_two_losses_are_two_probes() -> None:
    model, x = stack(), torch.randn(3, 6)
    one = watch(model, lambda m: m(x).sum(), 3)
    two, _ = watch_all(model, lambda m: m(x).sum(), 3)
    assert [s.log_grad_out for s in one] == [s.log_grad_out for s in two]


def test_a_part_of_the_graph_made_by_another_thread() -> None:
    """Node numbers are a thread's own (a GPU's backward thread has its own, too): they give no order here."""

    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            with ThreadPoolExecutor(1) as pool:
                h = pool.submit(lambda: torch.tanh(F.linear(h, self.b.weight, self.b.bias))).result()
            return self.c(h)

    model, x = Threaded(), torch.randn(5, 4)
    for _ in range(20):
        torch.tanh(x.requires_grad_())  # the main thread's numbers are far above those of a new one
    x = x.detach()
    expected = output_gradients(double(model), lambda m: m(x.double()).square().sum())
    sites = watch(model, lambda m: m(x).square().sum(), 5)
    for name in ("a", "c"):
        close(site(sites, name, "linear").log_grad_out, ln(expected[name][0][1]))
    assert [s.parameter for s in sites if s.kind == "linear"] == ["a.weight", "b.weight", "c.weight"]
    assert [s.depth for s in sites if s.kind == "linear"] == [1, 3, 5]


def test_a_named_module_inside_and_a_wrapper_outside() -> None:
    from unvanish.torch.probe.scopes import clean

    assert clean("module.net.0") == "net.0"
    assert clean("_orig_mod.module.net") == "net"
    assert clean("net.my_module.fc") == "net.my_module.fc"
    assert clean("net._checkpoint_wrapped_module.fc") == "net.fc"
    assert clean("submodule.weight") == "submodule.weight"
    assert clean("module") == ""


def test_facts_of_a_tensor_without_a_storage_are_facts() -> None:
    """A sparse input has no address; that it needs no gradient is known all the same."""

    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(x, self.weight)

    model = Sparse()
    probe = Probe(names_of(model), 2)
    with probe.watching():
        model(torch.eye(3).to_sparse())
        with torch.no_grad():
            model(torch.eye(3))
    given, again = probe.scopes.calls
    assert given.inputs == ((0, False),)
    assert [needs for _, needs in given.outputs] == [True]
    assert (given.trainable, given.grad_enabled, again.grad_enabled, again.outputs) == (True, True, False, ())
