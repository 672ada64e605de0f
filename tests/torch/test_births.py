"""The op where a NaN or Inf was born, forward and backward."""

from __future__ import annotations

import pytest
import torch
from oracle import watch
from torch import Tensor, nn

from unvanish.torch.probe.naming import names_of
from unvanish.torch.views.births import find_backward_birth, find_bad_source, find_forward_birth


class Breaking(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.how == "log":
            h = torch.log(torch.relu(h) * 0)
        elif self.how == "exp":
            h = torch.exp(h + 1000)
        elif self.how == "divide":
            h = h / torch.zeros_like(h)
        elif self.how == "sqrt":
            h = torch.sqrt(-h.abs() - 1)
        elif self.how == "mask":
            h = torch.softmax(h.masked_fill(h > 0, float("-inf")).index_fill(1, torch.tensor([0]), 0.0), 1)
        return self.second(h)


@pytest.mark.parametrize(("how", "op"), [("log", "log"), ("exp", "exp"), ("divide", "div"), ("sqrt", "sqrt")])
def test_forward_birth(how: str, op: str) -> None:
    torch.manual_seed(0)
    model, x = Breaking(how), torch.randn(4, 3)
    born = find_forward_birth(names_of(model), lambda: model(x).sum(), 7)
    assert born is not None
    assert (born.op, born.direction, born.step) == (op, "forward", 7)
    assert born.detail.startswith("its input was")


def test_masks_with_infinity_are_no_births() -> None:
    torch.manual_seed(0)
    model, x = Breaking("mask"), torch.randn(4, 3)
    assert find_forward_birth(names_of(model), lambda: model(x).sum(), 0) is None


def test_bad_data_and_bad_weights_come_first() -> None:
    model = nn.Linear(2, 2)
    bad = torch.tensor([[1.0, float("nan")]])
    found = find_bad_source(bad, model.named_parameters(), 0)
    assert found is not None
    assert found.where == "input"
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
    found = find_bad_source(torch.ones(1, 2), model.named_parameters(), 0)
    assert found is not None
    assert (found.where, found.direction) == ("weight", "parameter")
    assert find_bad_source((torch.ones(1), torch.ones(1, dtype=torch.long)), [], 0) is None


def test_backward_birth_where_the_forward_pass_is_finite() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.sqrt(torch.relu(self.first(x)) * 0))

    torch.manual_seed(0)
    model, x = Root(), torch.randn(4, 3)
    sites = watch(model, lambda m: m(x).sum(), 4)
    born = find_backward_birth(sites, {n: p.grad for n, p in model.named_parameters()}, 2)
    assert born is not None
    assert (born.op, born.direction, born.step) == ("sqrt", "backward", 2)
