"""A diagnosis changes nothing of the user's: every bit of model, optimizer, gradients and random streams stays."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as nn_module

from unvanish.torch.rehearsal.session import flow_of


class Everything(nn.Module):
    """Buffers, dropout, frozen and half-trained parts, a hook, an in-place op, a sub-module in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.rnn = nn.GRU(4, 5, batch_first=True)
        self.frozen, self.head = nn.Linear(5, 5), nn.Linear(5, 3)
        self.frozen.requires_grad_(False).eval()
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu_(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        return self.head(self.drop(self.frozen(self.rnn(h)[0][:, -1])))


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return copy.deepcopy(
        {
            "weights": dict(model.state_dict()),
            "grads": {name: p.grad for name, p in model.named_parameters()},
            "requires": {name: p.requires_grad for name, p in model.named_parameters()},
            "training": {name: m.training for name, m in model.named_modules()},
            "hooks": {name: [len(getattr(m, hook)) for hook in hooks] for name, m in model.named_modules()},
            "attributes": {name: sorted(vars(m)) for name, m in model.named_modules()},
            "optimizer": optimizer.state_dict(),
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),
            "python": random.getstate(),
            "global hooks": [len(nn_module._global_forward_hooks), len(nn_module._global_forward_pre_hooks)],
            "grad mode": torch.is_grad_enabled(),
        }
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("training", [True, False])
def test_everything_is_bit_identical_afterwards(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model = Everything().train(training)
    model.head.register_forward_hook(lambda *_: None)
    optimizer = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])
    batches = [(torch.randn(6, 1, 6, 6), torch.randint(3, (6,))) for _ in range(3)]
    kept = copy.deepcopy(batches)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batches[0][0]), batches[0][1])
        loss.backward()
        return loss

    optimizer.step(closure)  # gradients and optimizer state that must survive
    before = state_of(model, optimizer)
    identities = {n: (id(p), p.data_ptr(), id(p.grad)) for n, p in model.named_parameters()}
    flow = flow_of(model, F.cross_entropy, batches, optimizer, None, 6)
    after = state_of(model, optimizer)
    assert [key for key in before if not same(before[key], after[key])] == []
    assert identities == {n: (id(p), p.data_ptr(), id(p.grad)) for n, p in model.named_parameters()}
    assert same(kept, batches)
    assert flow.sites
    assert len(flow.steps) == 6


@pytest.mark.parametrize("outer", [torch.no_grad, torch.enable_grad])
def test_called_with_gradients_on_or_off(outer: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    with outer():
        enabled = torch.is_grad_enabled()
        flow = flow_of(model, F.mse_loss, [(torch.randn(5, 4), torch.randn(5, 1))], None, None, 0)
        assert torch.is_grad_enabled() == enabled
    assert flow.loss.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_untouched_even_when_the_loss_raises() -> None:
    torch.manual_seed(0)
    model = Everything()
    optimizer = OPTIMIZERS["adam"](list(model.parameters()))
    batches = [(torch.randn(4, 1, 6, 6), torch.zeros(4))]
    before = state_of(model, optimizer)

    def broken(output: Tensor, target: Tensor) -> Tensor:
        torch.rand(3)
        raise KeyError("the user's own error")

    with pytest.raises(KeyError):
        flow_of(model, broken, batches, optimizer, None, 3)
    after = state_of(model, optimizer)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_numbers_do_not_depend_on_the_optimizers_history() -> None:
    """Two diagnoses of the same model give the same flow."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))
    batches = [(torch.randn(5, 4), torch.randn(5, 1)) for _ in range(2)]
    one, two = (flow_of(model, F.mse_loss, batches, None, None, 4) for _ in range(2))
    assert one == two
