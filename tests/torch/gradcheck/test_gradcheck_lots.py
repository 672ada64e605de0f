"""Small layers measured together: the same findings as one by one, whatever is in the lot."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_table import ROWS
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from unvanish.torch.gradcheck import GradientCheck, gradcheck, session, units
from unvanish.torch.gradcheck.plain import SMOOTH

KINDS = sorted(kind.__name__ for kind in SMOOTH)


class SlightlyWrong(Function):
    """x W^T + b; the gradient of ``wrong`` is off by a factor of 1.001."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, wrong: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.wrong = wrong
        return torch.addmm(bias, x, weight.T)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        found = [grad @ weight, grad.T @ x, grad.sum(0)]
        found[ctx.wrong] = found[ctx.wrong] * 1.001
        return *found, None


class Several(nn.Module):
    """Layers side by side, each with inputs of its own behind one weight."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        rows = [ROWS[kind] for kind in kinds]
        self.scale = nn.Parameter(torch.tensor(1.1))
        self.layers = nn.ModuleList(row.make() for row in rows)
        self.entering = nn.ParameterList(
            nn.ParameterList(nn.Parameter(one, requires_grad=False) for one in row.inputs()) for row in rows
        )

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum() * self.scale
        for layer, inputs in zip(self.layers, self.entering, strict=True):
            total = total + layer(*(self.scale * one for one in inputs)).square().mean()
        return total


def checked(model: nn.Module) -> GradientCheck:
    return gradcheck(model, lambda output, _: output, (torch.ones(3), torch.zeros(1)))


def one_by_one(model: nn.Module) -> GradientCheck:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "right_together", lambda units, report: {})
        return checked(model)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(KINDS), min_size=2, max_size=8), st.integers(0, 1000), st.booleans())
def test_the_same_is_found_together_and_one_by_one(kinds: list[str], seed: int, training: bool) -> None:
    torch.manual_seed(seed)
    model = Several(kinds).train(training)
    together, alone = checked(model), one_by_one(model)
    assert together.ok, together
    assert alone.ok, alone
    assert [(c.module, c.kind, c.calls) for c in together.modules] == [
        (c.module, c.kind, c.calls) for c in alone.modules
    ]
    assert together.skipped == alone.skipped
    assert max(check.relative_error for check in together.modules) <= 1e-7


def run_of(monkeypatch: pytest.MonkeyPatch) -> list[units.Unit]:
    run: list[units.Unit] = []
    real = units.Unit._outputs

    def noting(self: units.Unit, *args: Any) -> Any:
        run.append(self)
        return real(self, *args)

    monkeypatch.setattr(units.Unit, "_outputs", noting)
    return run


@pytest.mark.parametrize("depth", [4, 40])
def test_a_smooth_layer_is_run_three_times_whatever_the_depth(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(8, 8), nn.Tanh())))
    run = run_of(monkeypatch)
    assert gradcheck(net, F.mse_loss, (torch.randn(9, 8), torch.randn(9, 8))).ok
    lots = [unit for unit in run if unit.kind == "lot"]
    assert len(lots) == 3 * len(set(lots))
    assert sum(len(unit.modules) for unit in set(lots)) == 2 * depth
    assert not [unit for unit in run if unit.kind in ("Linear", "Tanh")]


@pytest.mark.parametrize("wrong", [0, 1, 2])
@pytest.mark.parametrize("where", [0, 3, 7])
def test_a_wrong_layer_of_a_lot_is_found(where: int, wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a kernel of PyTorch had a fault for one shape."""
    torch.manual_seed(10 * where + wrong)
    real: Callable[..., Tensor] = F.linear

    def faulty(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return SlightlyWrong.apply(x, weight, bias, wrong) if weight.shape[0] == 9 else real(x, weight, bias)

    widths = [8, *(9 if k == where else 8 for k in range(8))]
    layers = (nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(widths))
    monkeypatch.setattr(F, "linear", faulty)
    check = gradcheck(nn.Sequential(nn.Tanh(), *layers), F.mse_loss, (torch.randn(9, 8), torch.randn(9, widths[-1])))
    expected = f"{where + 1}.0"
    if where == 0 and wrong == 0:  # nothing trained stands before it: its input needs no gradient
        assert check.ok
        return
    assert {failure.module for failure in check.failures} == {expected}
    tensor = ("input", "weight", "bias")[wrong]
    assert {failure.tensor for failure in check.failures if failure.kind == "Linear"} <= {tensor}
    assert [one.module for one in check.modules if not one.ok and one.kind == "Linear"] in ([], [expected])


def test_layers_that_share_a_weight_and_a_layer_called_again_are_right() -> None:
    torch.manual_seed(0)
    first, again = nn.Linear(6, 6), nn.Linear(6, 6)
    again.weight = first.weight
    net = nn.Sequential(first, nn.Tanh(), again, nn.Tanh(), first, nn.Tanh())
    check = gradcheck(net, F.mse_loss, (torch.randn(5, 6), torch.randn(5, 6)))
    assert check.ok, check
    assert [(one.module, one.calls) for one in check.modules if one.kind == "Linear"] == [("0", 2), ("2", 1)]


def test_a_layer_whose_derivative_is_tiny_in_the_lot_is_looked_at_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))
    net[3].bias.data.mul_(1e-3)
    run = run_of(monkeypatch)
    check = gradcheck(net, F.mse_loss, (torch.randn(9, 8), torch.randn(9, 8)))
    assert check.ok, check
    assert {unit.module for unit in run if unit.kind == "Linear"} == {"3"}
    assert len(check.modules) == 7
