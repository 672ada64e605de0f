"""Networks that are called as functions: under vmap and jacrev, where tensors have no numbers of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional as F
from torch.optim import Adam

import unvanish

Batch = tuple[Tensor, Tensor]


def by_sample(model: nn.Module, batch: Batch) -> Tensor:
    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(model, weights, (x,)), y)

    return vmap(loss, (None, 0, 0))(dict(model.named_parameters()), *batch).mean()


def by_slopes(model: nn.Module, batch: Batch) -> Tensor:
    slopes = vmap(jacrev(model))(batch[0])
    return F.mse_loss(model(batch[0]), batch[1]) + 0.1 * (slopes - 1).square().mean()


def by_gradient(model: nn.Module, batch: Batch) -> Tensor:
    force = vmap(grad(lambda x: model(x).sum()))(batch[0])
    return F.mse_loss(force, torch.ones_like(force)) + F.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("objective", [by_sample, by_slopes, by_gradient])
@pytest.mark.parametrize("rate", [1e-2, 1e-8])
def test_a_network_under_a_transform_is_diagnosed(objective: object, rate: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    x = torch.randn(32, 4)
    batches = [(x, x.sum(1, keepdim=True))] * 4
    diagnosis = unvanish.diagnose(
        model, batches=batches, optimizer=Adam(model.parameters(), lr=rate), objective=objective
    )  # type: ignore[call-overload]
    assert {site.name for site in diagnosis.flow.sites} >= {"0", "1", "2"}
    assert [finding.cause for finding in diagnosis.findings] == ([] if rate == 1e-2 else ["learning-rate-low"])
