"""Attention weights that sum to 1 along another axis than the one they are summed over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.views.observe import observe

Attend = Callable[[Tensor, Tensor], Tensor]  # scores (n, h, q, k) and values (n, h, k, d)

WAYS: list[Attend] = [
    lambda scores, values: scores.softmax(-1) @ values,
    lambda scores, values: scores.softmax(-2) @ values,
    lambda scores, values: scores.softmax(1) @ values,
    lambda scores, values: scores.softmax(0) @ values,
    lambda scores, values: F.dropout(scores.softmax(-2), 0.0) @ values,
    lambda scores, values: scores.softmax(-2).transpose(-1, -2) @ values,
    lambda scores, values: torch.bmm(scores.flatten(0, 1).softmax(2), values.flatten(0, 1)),
    lambda scores, values: torch.bmm(scores.flatten(0, 1).softmax(1), values.flatten(0, 1)),
    lambda scores, values: (scores.softmax(-2) / scores.softmax(-2).sum(-1, keepdim=True)) @ values,
    lambda scores, values: torch.einsum("nhqk,nhkd->nhqd", scores.softmax(-1), values),
]


class Attention(nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.ask, self.tell, self.attend = nn.Linear(6, 6), nn.Linear(6, 6), attend

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (2, 3)).transpose(1, 2)
        asked, told = (f(x).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.ask, self.tell))
        return self.attend(asked @ heads.transpose(-1, -2), told)


@pytest.mark.parametrize("attend", WAYS)
def test_it_is_told_where_an_average_of_ones_is_not_one(attend: Attend) -> None:
    torch.manual_seed(0)
    ones = attend(torch.randn(4, 2, 5, 5), torch.ones(4, 2, 5, 3))
    averages = torch.allclose(ones, torch.ones_like(ones), atol=1e-5)
    model, x = Attention(attend), torch.randn(4, 5, 6)
    seen = observe(model, None, Objective(None, lambda net, batch: net(batch).square().mean()), x)
    shapes = {site.shape for site in seen.sites if site.kind == "softmax"}
    assert (seen.loss.crossed in shapes, seen.loss.crossed is None) == (not averages, averages)
