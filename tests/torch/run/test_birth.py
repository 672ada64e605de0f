"""Where a NaN or Inf was born is read from what autograd saved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.probe.naming import names_of
from unvanish.torch.run.birth import find_birth_unwatched


def outside(x: Tensor) -> Tensor:
    """Beyond the domain of acos; the mean of its result tells nothing of it."""
    return F.cross_entropy(-4 * torch.acos(1 + x.square()), torch.zeros(8).long())


def overflown(x: Tensor) -> Tensor:
    """A sum of large numbers: neither it nor the log-softmax above keeps it."""
    torch.manual_seed(0)
    return F.cross_entropy(F.linear(x * 1e38, torch.full((3, 3), 1e3)), torch.zeros(8).long())


def masked(x: Tensor) -> Tensor:
    """All of a row is masked: -inf is meant, its softmax is not."""
    return x.masked_fill(torch.ones_like(x, dtype=torch.bool), -torch.inf).softmax(1).sum()


@pytest.mark.parametrize(("objective", "op"), [(outside, "acos"), (overflown, "linear"), (masked, "softmax")])
def test_the_op_that_broke_is_named(objective: Callable[[Tensor], Tensor], op: str) -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    loss = objective(net(torch.randn(8, 4)).clamp(-1, 1))
    assert not torch.isfinite(loss)
    born = find_birth_unwatched(loss, names_of(net))
    assert born is not None
    assert (born.op, born.direction) == (op, "forward")
