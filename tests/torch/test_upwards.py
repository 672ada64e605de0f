"""An error that is made larger is told; a policy's loss, which is negative by its rewards, is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unvanish


def advantages(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    chosen = torch.distributions.Categorical(logits=logits.detach()).sample()
    return chosen, (chosen == target).float() - 1.0


def policy(logits: Tensor, target: Tensor) -> Tensor:
    chosen, gained = advantages(logits, target)
    return (F.cross_entropy(logits, chosen, reduction="none") * gained).mean()


def policy_of_a_batch(logits: Tensor, target: Tensor) -> Tensor:
    chosen, gained = advantages(logits, target)
    return F.cross_entropy(logits, chosen) * gained.mean()


def turned(logits: Tensor, target: Tensor) -> Tensor:
    return -F.cross_entropy(logits, target)


def turned_and_reduced(logits: Tensor, target: Tensor) -> Tensor:
    return -F.cross_entropy(logits, target, reduction="none").mean()


def told(loss: Callable[[Tensor, Tensor], Tensor], **settings: Any) -> list[str]:
    inputs, target = torch.randn(8, 32, 12), torch.randint(5, (8, 32))
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, **settings)
    found = unvanish.diagnose(model, loss, list(zip(inputs, target, strict=True)), optimizer)
    assert (found.flow.loss.value < 0) == (loss is not F.cross_entropy)
    return [finding.message for finding in found.findings if "makes the answers worse" in finding.message]


@pytest.mark.parametrize("seed", range(3))
def test_only_an_error_that_grows_is_told(seed: int) -> None:
    torch.manual_seed(seed)
    for loss in (policy, policy_of_a_batch, F.cross_entropy):
        assert not told(loss), loss
    for loss in (turned, turned_and_reduced):
        assert "sign turned" in told(loss)[0]
        assert not told(loss, maximize=True)
    assert "maximize=True" in told(F.cross_entropy, maximize=True)[0]
    assert not told(policy, maximize=True)
