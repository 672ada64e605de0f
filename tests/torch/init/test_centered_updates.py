"""CenteredUpdates against a slow loop; every habit of an optimizer's user still works."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR

from unvanish.torch.centered import CenteredUpdates

MAKERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
}


def model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5)).to(dtype)


def train(net: nn.Module, optimizer: Optimizer, steps: int = 4) -> None:
    torch.manual_seed(1)
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 2, 6, dtype=dtype)).square().sum().backward()
        optimizer.step()


class SlowLoop:
    """Takes out the gradients' row means, copies all weights, steps, and takes out the updates', a row at a time."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self) -> None:
        weights = [p for group in self.inner.param_groups for p in group["params"] if p.ndim >= 2]
        for p in weights:
            for row in range(len(p)):
                p.grad[row] -= p.grad[row].mean()  # type: ignore[index]
        old = [p.detach().clone() for p in weights]
        self.inner.step()
        with torch.no_grad():
            for p, before in zip(weights, old, strict=True):
                for row in range(len(p)):
                    delta = p[row] - before[row]
                    p[row] = before[row] + delta - delta.mean()


@pytest.mark.parametrize("name", list(MAKERS))
def test_equals_the_slow_loop(name: str) -> None:
    ours, slow = model(), model()
    train(ours, CenteredUpdates(MAKERS[name](list(ours.parameters()))))
    train(slow, SlowLoop(MAKERS[name](list(slow.parameters()))))  # type: ignore[arg-type]
    for a, b in zip(ours.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@given(
    shape=st.sampled_from([(1, 4), (3, 1), (4, 7), (2, 3, 4), (2, 2, 3, 3)]),
    rate=st.floats(1e-6, 1.0),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_rows_keep_their_mean_in_float32(shape: tuple[int, ...], rate: float, offset: float, seed: int) -> None:
    """Though a weight is a million times its update: the means are taken in float64."""
    torch.manual_seed(seed)
    p = nn.Parameter(torch.randn(shape) + offset)
    before = p.detach().double().flatten(1).mean(1)
    optimizer = CenteredUpdates(torch.optim.SGD([p], lr=rate))
    p.grad = torch.randn(shape) + 1
    optimizer.step()
    drift = (p.detach().double().flatten(1).mean(1) - before).abs().max()
    assert drift <= torch.finfo(torch.float32).eps * (abs(offset) + 5)


def test_a_gradient_of_one_sign_does_not_hide_the_rest() -> None:
    """The rest is a thousandth of the gradient, and still makes a whole step of RMSprop."""
    p = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
    optimizer = CenteredUpdates(torch.optim.RMSprop([p], lr=0.1, alpha=0.0))
    p.grad = torch.tensor([[1.001, 0.999]], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([[-0.1, 0.1]], dtype=torch.float64), rtol=0, atol=1e-5)


def test_sparse_gradients_are_left_to_the_optimizer() -> None:
    p = nn.Parameter(torch.zeros(3, 2))
    optimizer = CenteredUpdates(torch.optim.SGD([p], lr=1.0))
    p.grad = torch.sparse_coo_tensor([[1]], [[1.0, 3.0]], (3, 2), check_invariants=True)
    optimizer.step()
    assert p.detach().tolist() == [[0, 0], [1, -1], [0, 0]]


def test_closures_of_the_wrapped_optimizer_are_centered_too() -> None:
    p = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
    inner = torch.optim.RMSprop([p], lr=0.1, alpha=0.0)
    CenteredUpdates(inner)

    def closure() -> float:
        p.grad = torch.tensor([[1.001, 0.999]], dtype=torch.float64)
        return 0.5

    assert inner.step(closure) == 0.5
    assert inner.step(closure=closure) == 0.5
    torch.testing.assert_close(p.detach(), torch.tensor([[-0.2, 0.2]], dtype=torch.float64), rtol=0, atol=1e-5)


def test_one_axis_is_left_alone() -> None:
    plain, centered = model(), model()
    train(plain, MAKERS["rmsprop"](list(plain.parameters())), steps=1)
    train(centered, CenteredUpdates(MAKERS["rmsprop"](list(centered.parameters()))), steps=1)
    for (name, a), b in zip(plain.named_parameters(), centered.parameters(), strict=True):
        assert torch.equal(a, b) == (a.ndim < 2), name


def test_chosen_parameters_only() -> None:
    plain, centered = model(), model()
    train(plain, MAKERS["sgd"](list(plain.parameters())), steps=1)
    inner = MAKERS["sgd"](list(centered.parameters()))
    train(centered, CenteredUpdates(inner, [centered[3].weight]), steps=1)
    assert torch.equal(plain[0].weight, centered[0].weight)
    assert not torch.equal(plain[3].weight, centered[3].weight)


def test_state_dict_is_the_wrapped_ones() -> None:
    net = model()
    optimizer = CenteredUpdates(MAKERS["adamw"](list(net.parameters())))
    train(net, optimizer)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
    train(net, optimizer)
    other = model()
    other.load_state_dict(weights)
    again = CenteredUpdates(MAKERS["adamw"](list(other.parameters())))
    again.load_state_dict(saved)
    train(other, again)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.optim.AdamW(model().parameters()).load_state_dict(saved)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"])
def test_copies_center_their_own_weights_once(how: Callable[[object], tuple[nn.Module, Optimizer]]) -> None:
    net = model()
    optimizer = CenteredUpdates(MAKERS["rmsprop"](list(net.parameters())), [net[3].weight])
    train(net, optimizer)
    other, copied = how((net, optimizer))
    train(net, optimizer)
    train(other, copied)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(copied.inner._optimizer_step_post_hooks) == 1


def test_schedulers_and_groups() -> None:
    net = model()
    optimizer = CenteredUpdates(torch.optim.SGD([{"params": net[0].parameters(), "lr": 0.5}], lr=0.1, momentum=0.9))
    optimizer.add_param_group({"params": net[3].parameters()})
    assert isinstance(optimizer, Optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    warm = LinearLR(optimizer, 0.1, total_iters=2)
    scheduler = SequentialLR(optimizer, [warm, CosineAnnealingLR(optimizer, 5)], [2])
    for _ in range(4):
        train(net, optimizer, 1)
        scheduler.step()
    assert 0 < optimizer.param_groups[0]["lr"] < 0.5
    assert optimizer.inner.param_groups is optimizer.param_groups
    OneCycleLR(optimizer, 1.0, total_steps=5)


def test_scaler_skips_a_step_that_is_not_finite() -> None:
    net = model(torch.float32)
    optimizer = CenteredUpdates(torch.optim.SGD(net.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = [p.clone() for p in net.parameters()]
    scaler.scale(net(torch.full((2, 2, 6), float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    optimizer.zero_grad()
    scaler.scale(net(torch.randn(2, 2, 6)).square().sum()).backward()
    scaler.step(optimizer)
    assert not torch.equal(before[0], net[0].weight)


def test_closures_and_hooks() -> None:
    p = nn.Parameter(torch.tensor([[1.0, 5.0]]))
    optimizer = CenteredUpdates(torch.optim.LBFGS([p], lr=0.5))
    seen: list[Tensor] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(p.detach().clone()))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ((p - 3) ** 2 + p).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(14)
    assert len(seen) == 1
    assert float(p.detach().mean()) == pytest.approx(3)
    assert torch.equal(seen[0], p)


def test_wrapped_optimizer_stepped_directly_is_centered_too() -> None:
    p = nn.Parameter(torch.zeros(2, 3))
    inner = torch.optim.SGD([p], lr=1.0)
    CenteredUpdates(inner)
    p.grad = torch.tensor([[1.0, 2, 6], [0, 0, 0]])
    inner.step()
    assert p.detach().tolist() == [[2, 1, -3], [0, 0, 0]]


def test_complex_weights() -> None:
    p = nn.Parameter(torch.zeros(1, 2, dtype=torch.complex64))
    optimizer = CenteredUpdates(torch.optim.SGD([p], lr=1.0))
    p.grad = torch.tensor([[1 + 2j, 3]])
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([[1 - 1j, -1 + 1j]], dtype=torch.complex64))


def test_a_model_names_its_layers_weights() -> None:
    """Embeddings, positions and norms are left; frozen layers need not be in the optimizer; a shared weight is one."""
    net = nn.ModuleDict(
        {
            "words": nn.Embedding(5, 6),
            "attention": nn.MultiheadAttention(6, 2, add_bias_kv=True),
            "lstm": nn.LSTM(6, 6, proj_size=2),
            "frozen": nn.Linear(6, 6).requires_grad_(False),
            "head": nn.Linear(6, 6),
        }
    )
    net["tied"] = nn.Linear(6, 6)
    net["tied"].weight = net["head"].weight
    net.register_parameter("positions", nn.Parameter(torch.zeros(3, 6)))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    CenteredUpdates(optimizer, net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None  # a mean, and nothing else
    optimizer.step()
    stayed = {name for name, p in net.named_parameters() if torch.equal(p, before[name])}
    assert stayed == {
        "attention.in_proj_weight", "attention.out_proj.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0",
        "lstm.weight_hr_l0", "head.weight", "frozen.weight", "frozen.bias",
    }  # fmt: skip


def test_refuses_what_it_cannot_center() -> None:
    with pytest.raises(ValueError, match=r"got a list.*Expected a torch.optim.Optimizer.*Build one"):
        CenteredUpdates([nn.Parameter(torch.zeros(2, 2))])  # type: ignore[arg-type]
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for wrong in ([net[0].bias], [nn.Parameter(torch.zeros(2, 2))], ["0.weight"], "0.weight", 3, net[3].weight):
        with pytest.raises(ValueError, match=r"cannot be centred.*Expected a model, or.*Leave biases"):
            CenteredUpdates(optimizer, wrong)  # type: ignore[arg-type]
    for empty in ([], net[4], model()):
        with pytest.raises(ValueError, match=r"nothing to centre.*Expected weights of.*Build the optimizer"):
            CenteredUpdates(optimizer, empty)
