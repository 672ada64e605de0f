"""Wrong derivatives are found, named and measured, at any depth; what the peers miss is asserted as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from wrong_functions import (
    Functional,
    HandMadeLinear,
    NewStyleCube,
    NoGradient,
    OneEntryLinear,
    Raises,
    ScaledSigmoid,
    Tripled,
    modular,
)

from unvanish.torch.gradcheck import GradientCheck, gradcheck, gradcheck_function


def checked(model: nn.Module, width: int = 8, rows: int = 4) -> GradientCheck:
    dtype = next(model.parameters()).dtype
    batch = torch.randn(rows, width, dtype=dtype), torch.zeros(1)
    return gradcheck(model, lambda output, _: output.square().sum(), batch)


@pytest.mark.parametrize("depth", [5, 10, 20, 30, 100])
@pytest.mark.parametrize("style", [modular, Functional])
def test_first_derivative_times_minus_three_is_found_at_every_depth(style: type[nn.Module], depth: int) -> None:
    torch.manual_seed(depth)
    model = style(depth)
    check = checked(model)
    assert not check.ok
    assert len(check.failures) == 1, check
    failure = check.failures[0]
    assert failure.module == ("1" if style is modular else "")
    assert failure.kind == "ScaledSigmoid"
    assert failure.tensor == "input"
    assert failure.analytic is not None
    assert failure.numeric is not None
    assert failure.analytic / failure.numeric == pytest.approx(-3, rel=1e-6)
    assert checked(style(depth, wrong=None)).ok


@pytest.mark.parametrize("wrong", [0, 7, 14])
def test_where_it_is_wrong(wrong: int) -> None:
    torch.manual_seed(0)
    check = checked(modular(15, wrong=wrong))
    assert [failure.module for failure in check.failures] == [str(2 * wrong + 1)]


@pytest.mark.parametrize("depth", [10, 20, 30])
def test_peers_miss_what_is_found(depth: int) -> None:
    torch.manual_seed(0)
    model = modular(depth, width=4).double()
    inputs = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run(*values: Tensor) -> Tensor:
        names = [name for name, _ in model.named_parameters()]
        return torch.func.functional_call(model, dict(zip(names, values[1:], strict=True)), (values[0],)).mean()

    assert torch.autograd.gradcheck(run, (inputs, *parameters), fast_mode=True), "if torch finds it, say so in the docs"
    assert not checked(model, width=4).ok


@pytest.mark.parametrize("factor", [1.1, 1.001, 1.00001, 0.999, 0.0, -1.0, 1e6])
def test_small_and_large_factors(factor: float) -> None:
    torch.manual_seed(1)
    check = checked(modular(20, factor=factor))
    assert not check.ok
    failure = check.failures[0]
    assert failure.analytic is not None
    assert failure.numeric is not None
    assert failure.analytic / failure.numeric == pytest.approx(factor, rel=1e-7, abs=1e-9)
    assert checked(modular(20, factor=1.0)).ok


@pytest.mark.parametrize("entry", [(2, 3), (0, 0), (39, 29)])
def test_one_wrong_entry_of_1200_is_named(entry: tuple[int, int]) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Sequential(OneEntryLinear(30, 40, entry)))
    check = checked(model)
    # the wrong derivative is in the Function; its second argument is the weight
    assert [(f.module, f.kind, f.tensor, f.index) for f in check.failures] == [("2.0", "OneEntry", "input[1]", entry)]
    assert check.failures[0].analytic == pytest.approx(2 * check.failures[0].numeric, rel=1e-6)


def test_a_parameter_is_named_as_the_user_knows_it() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), HandMadeLinear(8, 4))
    check = checked(model)
    assert [(f.module, f.kind, f.tensor) for f in check.failures] == [("2", "HandMadeLinear", "input")]
    model[2].weight.register_hook(lambda grad: grad * torch.tensor([1.0] * 31 + [4.0]).reshape(4, 8))
    found = {f.where: f for f in checked(model).failures}
    assert "2.weight[3, 7]" in found
    assert found["2.weight[3, 7]"].analytic == pytest.approx(4 * found["2.weight[3, 7]"].numeric, rel=1e-6)


def test_between_two_modules() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h.register_hook(lambda grad: 5 * grad)
            return self.b(torch.tanh(h))

    torch.manual_seed(4)
    check = checked(nn.Sequential(nn.Linear(8, 8), Parent(), nn.Linear(8, 8)))
    assert [(f.module, f.kind, f.tensor) for f in check.failures] == [("1", "Parent", "output of 1.a")]
    assert check.failures[0].analytic == pytest.approx(5 * check.failures[0].numeric, rel=1e-6)


def test_new_style_function_missing_gradient_and_bound_apply() -> None:
    apply = NewStyleCube.apply  # bound before the check, as programs do

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return NoGradient.apply(self.b(apply(self.a(x))))

    torch.manual_seed(5)
    found = {f.kind: f for f in checked(Net()).failures}
    assert set(found) == {"NewStyleCube", "NoGradient"}
    assert found["NewStyleCube"].numeric == pytest.approx(3 * found["NewStyleCube"].analytic, rel=1e-6)
    assert found["NoGradient"].analytic == 0


def test_backward_that_raises() -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Raises.apply(super().forward(x))

    failure = checked(Net(8, 8)).failures[0]
    assert failure.kind == "Raises"
    assert "KeyError: 'no such thing'" in failure.problem


def test_a_wrong_loss() -> None:
    torch.manual_seed(6)
    check = gradcheck(
        nn.Linear(8, 3),
        lambda output, target: ScaledSigmoid.apply(output, 1.5).sub(target).square().sum(),
        (torch.randn(4, 8), torch.zeros(4, 3)),
    )
    assert [(f.module, f.kind) for f in check.failures] == [("loss", "ScaledSigmoid")]


def test_nan_is_told_as_nan_and_where() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 1e3).sqrt()

    torch.manual_seed(7)
    check = checked(nn.Sequential(nn.Linear(8, 8), Root(), nn.Linear(8, 8)))
    assert [(f.module, f.kind, f.analytic) for f in check.failures] == [("1", "Root", None)]
    assert "NaN comes out" in check.failures[0].problem
    assert any(skip.module == "2" and "NaN" in skip.reason for skip in check.skipped)


def test_pytorch_s_own_bug_in_cross_map_lrn_is_found() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.CrossMapLRN2d(3, alpha=1.0))
    x = torch.randn(2, 3, 4, 4)
    oracle = torch.autograd.gradcheck(
        nn.CrossMapLRN2d(3, alpha=1.0), torch.randn(2, 6, 2, 2).double().requires_grad_(), raise_exception=False
    )
    assert not oracle, "mended in PyTorch: put it back into layer_table.py"
    check = gradcheck(model, lambda y, _: y.square().sum(), (x, torch.zeros(1)))
    assert [f.module for f in check.failures] == ["1"]


def test_a_cut_gradient_is_told_and_no_failure() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).detach().tanh())

    torch.manual_seed(9)
    check = checked(Cut())
    assert check.ok
    assert any("no gradient flows back to a.weight" in skip.reason for skip in check.skipped), check


def test_functions() -> None:
    torch.manual_seed(10)
    x = torch.randn(3, 4)
    assert gradcheck_function(torch.tanh, x).ok
    assert gradcheck_function(F.linear, x, torch.randn(5, 4), torch.randn(5)).ok
    check = gradcheck_function(ScaledSigmoid.apply, x, 2.0)
    assert not check.ok
    assert check.failures[0].where.startswith("ScaledSigmoid (function) input[")
    assert check.failures[0].analytic == pytest.approx(2 * check.failures[0].numeric, rel=1e-6)
    assert gradcheck_function(ScaledSigmoid.apply, x, 1.0).ok


def test_reads_in_a_few_lines() -> None:
    torch.manual_seed(0)
    text = str(checked(modular(30)))
    assert text.startswith("unvanish gradcheck: WRONG in 1 of ")
    assert "1 (ScaledSigmoid) input" in text
    assert "(ratio -3)" in text
    assert "What to do: mend the backward of 1 (ScaledSigmoid)" in text
    assert "blind for" in text
    assert len(text.splitlines()) <= 6
    assert Tripled(-3.0).factor == -3.0


@pytest.mark.parametrize("size", [1e-5, 1e-18, 1e-30])
def test_a_parameter_of_tiny_numbers_is_checked_all_the_same(size):
    """A step in proportion to such a bias drowns in rounding: it moves as far as moves the output."""

    class Shift(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, b):
            return x + b

        @staticmethod
        def backward(ctx, grad):
            return grad, factor * grad.sum(0)

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.full((5,), size))

        def forward(self, x):
            return Shift.apply(x, self.bias)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 5), Shifted())
    batch = torch.randn(8, 5), torch.randn(8, 5)
    factor = 1.0
    right = gradcheck(net, nn.functional.mse_loss, batch)
    assert right.ok
    assert all(skipped.trivial for skipped in right.skipped)
    factor = -3.0
    (failure,) = gradcheck(net, nn.functional.mse_loss, batch).failures
    assert failure.analytic == pytest.approx(-3 * failure.numeric, rel=1e-6)


@pytest.mark.parametrize("wrong", [0, 4, 7])
def test_which_call_of_a_shared_module_is_wrong(wrong: int) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for k in range(8):
                x = ScaledSigmoid.apply(self.layer(x), 2.0 if k == wrong else 1.0)
            return x

    torch.manual_seed(0)
    (failure,) = checked(Shared(), width=4).failures
    assert failure.problem == f"wrong derivative (call {wrong + 1} of 8)"
    assert "(call" not in checked(modular(3)).failures[0].problem


@pytest.mark.parametrize("seed", range(5))
def test_of_entries_wrong_by_one_factor_the_largest_is_named(seed: int) -> None:
    x = torch.randn(20, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3
    (failure,) = gradcheck_function(lambda x: ScaledSigmoid.apply(x, -3.0).sum(), x).failures
    slope = x.sigmoid() * (1 - x.sigmoid())
    assert failure.index == tuple(torch.unravel_index(slope.argmax(), slope.shape))
    assert abs(failure.numeric) == pytest.approx(float(slope.max()), rel=1e-6)
