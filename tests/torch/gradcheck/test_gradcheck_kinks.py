"""At a kink a derivative lies between the two sides; a wrong one there is found, and no convention is called wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_table import ROWS, Uses, spread_loss
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.gradcheck import gradcheck, gradcheck_function


def by_hand(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """A Function of one tensor."""

    class Made(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return backward(ctx.saved_tensors[0], grad)

    return Made


def relu(at_zero: float) -> Any:
    return by_hand(torch.relu, lambda x, g: g * ((x > 0) + at_zero * (x == 0)))


def absolute(at_zero: float) -> Any:
    return by_hand(torch.abs, lambda x, g: g * (x.sign() + at_zero * (x == 0)))


def clamped(at_edge: float) -> Any:
    return by_hand(lambda x: x.clamp(-1, 1), lambda x, g: g * ((x.abs() < 1) + at_edge * (x.abs() == 1)))


def largest(weights: Callable[[Tensor], Tensor]) -> Any:
    """The largest of each row; ``weights`` of a row's ties."""
    return by_hand(lambda x: x.amax(1), lambda x, g: g[:, None] * weights((x == x.amax(1, keepdim=True)).to(x.dtype)))


def split(ties: Tensor) -> Tensor:
    return ties / ties.sum(1, keepdim=True)


def first(ties: Tensor) -> Tensor:
    return ties * (ties.cumsum(1) == 1)


def five_times(ties: Tensor) -> Tensor:
    return torch.where(ties.sum(1, keepdim=True) > 1, 5 * split(ties), ties)


ZEROS_AND_MORE = torch.tensor([[0.0, 0.0, 1.0, -1.0], [2.0, 0.0, -0.5, 0.0]])
EDGES = torch.tensor([[-1.0, 1.0, 0.5, 1.0], [3.0, -1.0, -2.0, 0.0]])
TIES = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [3.0, 1.0, 2.0]])

WRONG = [
    (relu(17.0), ZEROS_AND_MORE, 17.0, 1.0),
    (relu(17.0), torch.zeros(300), 17.0, 1.0),
    (relu(-0.1), ZEROS_AND_MORE, -0.1, 0.0),
    (relu(torch.nan), ZEROS_AND_MORE, None, None),
    (absolute(2.0), ZEROS_AND_MORE, 2.0, 1.0),
    (clamped(1.5), EDGES, 1.5, 1.0),
    (largest(five_times), TIES, 2.5, 1.0),
]


@pytest.mark.parametrize(("function", "x", "analytic", "numeric"), WRONG)
def test_a_wrong_derivative_at_a_kink_is_found(
    function: Any, x: Tensor, analytic: float | None, numeric: float | None
) -> None:
    (failure,) = gradcheck_function(function.apply, x).failures
    if analytic is not None:
        assert failure.index is not None
        assert failure.analytic == pytest.approx(analytic)
        assert failure.numeric == pytest.approx(numeric, abs=1e-5)
        assert "at a kink" in str(failure)


def test_ties_counted_twice_are_found_though_each_is_right_alone() -> None:
    (failure,) = gradcheck_function(largest(lambda ties: ties).apply, TIES).failures
    assert failure.index is None
    assert "along a direction" in failure.problem


def test_it_is_found_in_a_network_too() -> None:
    class Net(nn.Module):
        def __init__(self, at_zero: float) -> None:
            super().__init__()
            self.first, self.last, self.relu = nn.Linear(4, 6, bias=False), nn.Linear(6, 2), relu(at_zero)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.relu.apply(self.first(x)))

    torch.manual_seed(0)
    batch = torch.cat([torch.zeros(2, 4), torch.randn(3, 4)]), torch.zeros(5, 2)
    check = gradcheck(Net(17.0), F.mse_loss, batch)
    assert [(failure.kind, failure.tensor) for failure in check.failures] == [("Made", "input")]
    assert check.failures[0].index[0] < 2
    assert gradcheck(Net(0.0), F.mse_loss, batch).ok
    assert gradcheck(Net(0.5), F.mse_loss, batch).ok


@pytest.mark.parametrize(
    ("function", "x"),
    [
        *((relu(at_zero), ZEROS_AND_MORE) for at_zero in (0.0, 0.5, 1.0)),
        *((absolute(at_zero), ZEROS_AND_MORE) for at_zero in (-1.0, 0.0, 1.0)),
        *((clamped(at_edge), EDGES) for at_edge in (0.0, 1.0)),
        *((largest(weights), TIES) for weights in (split, first)),
        (relu(0.0), torch.zeros(5)),
        (largest(split), torch.ones(3, 4)),
    ],
)
def test_every_number_between_the_sides_is_right(function: Any, x: Tensor) -> None:
    check = gradcheck_function(function.apply, x)
    assert check.ok, check
    assert [one for one in check.skipped if not one.trivial] == [], check


def test_a_kink_nearby_is_none_at_the_point() -> None:
    x = torch.tensor([3e-7, -3e-7, 1e-9, 1e-5, -2e-6, 1.0], dtype=torch.float64)
    assert gradcheck_function(relu(17.0).apply, x).failures == ()


class Fused(torch.autograd.Function):
    """A small network as one Function, with autograd inside: kinks that open to both sides mix in each entry."""

    @staticmethod
    def run(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return (x @ first).relu() @ second - (x @ second).abs().sum(-1, keepdim=True)

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return Fused.run(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs = [one.detach().requires_grad_() for one in ctx.saved_tensors]
        with torch.enable_grad():
            return torch.autograd.grad(Fused.run(*inputs), inputs, grad)


@pytest.mark.parametrize("width", [2, 3, 6])
def test_kinks_that_open_to_both_sides_are_no_false_alarm(width: int) -> None:
    side_by_side = (178, 348, 790, 884, 964)  # at width 2: a kink a hundredth as large as one that opens the other way
    for seed in (*range(30), *side_by_side):
        generator = torch.Generator().manual_seed(seed)
        first, second = torch.randn(2, width, width, generator=generator)
        x = torch.randn(4, width, generator=generator)
        x[:2] = 0.0
        check = gradcheck_function(Fused.apply, x, first, second)
        assert check.failures == (), check


AT_KINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "integers": torch.round,
    "halves": lambda x: (2 * x).round() / 2,
    "edges": lambda x: 6 * x.sign(),
    "rows alike": lambda x: x[:1].expand_as(x).clone(),
    "some zeros": lambda x: x * (x > 0),
}


class AsIs(nn.Module):
    """What comes in, as a trained input of what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize("inputs", list(AT_KINKS))
@pytest.mark.parametrize("name", list(ROWS))
def test_no_layer_of_pytorch_is_called_wrong_at_its_kinks(name: str, inputs: str) -> None:
    torch.manual_seed(len(name))
    row, change = ROWS[name], AT_KINKS[inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLLLoss2d is deprecated, lazy layers are new
        model = Uses(row.make(), row.how)
        model.mix = AsIs() if model.mix is not None else None
        batch = tuple(change(x) if x.is_floating_point() else x for x in row.inputs())
        if "Norm" in name and "Lazy" in name:
            model(*batch)
        check = gradcheck(model, spread_loss, (batch, torch.zeros(1)))
    assert all("NaN" in failure.problem for failure in check.failures), check  # of roots and logarithms at zero


FUNCTIONS = {
    "relu": F.relu, "abs": torch.abs, "hardtanh": F.hardtanh, "relu6": F.relu6, "leaky_relu": F.leaky_relu,
    "hardshrink": F.hardshrink, "softshrink": F.softshrink, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "clamp": lambda x: x.clamp(-1, 1), "sign": torch.sign, "floor": torch.floor, "round": torch.round,
    "sort": lambda x: x.sort(-1).values, "topk": lambda x: x.topk(2, -1).values, "amax": lambda x: x.amax(-1),
    "max": lambda x: x.max(-1).values, "median": lambda x: x.median(-1).values, "cummax": lambda x: x.cummax(-1).values,
    "maximum": lambda x: torch.maximum(x, -x), "norm": lambda x: x.norm(dim=-1), "fmod": lambda x: x.fmod(1.0),
    "leaky by hand": lambda x: F.relu(x) - 0.1 * F.relu(-x), "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "prod": lambda x: x.prod(-1), "smooth_l1": lambda x: F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none"),
    "max_pool": lambda x: F.max_pool1d(x[None], 2), "inf norm": lambda x: x.norm(torch.inf),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_no_function_of_pytorch_is_called_wrong_at_its_kinks(name: str) -> None:
    for inputs, change in AT_KINKS.items():
        x = change(torch.randn(4, 6, generator=torch.Generator().manual_seed(len(name))))
        check = gradcheck_function(FUNCTIONS[name], x)
        assert check.failures == (), (inputs, check)
