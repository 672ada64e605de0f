"""Right is said only of what was compared; a user's exception is the user's; a NaN is blamed where it came in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.gradcheck import GradientCheck, gradcheck, gradcheck_function

X, ZEROS = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 2)


def explain(error: BaseException) -> str:
    return " ".join([str(error), *getattr(error, "__notes__", [])])


@pytest.mark.parametrize(
    ("function", "inputs", "kind", "message"),
    [
        (lambda x: 1 / 0, X, ZeroDivisionError, "This error comes from <lambda>"),
        (lambda x: x @ x, X, RuntimeError, "mat1 and mat2 shapes"),
        (lambda x: 3.0, X, ValueError, "returned a float without"),
        (lambda x: None, X, ValueError, "returned None without"),
        (lambda x: x.argmax(), X, ValueError, "without a floating-point number"),
        (lambda x: x.detach() * 2, X, ValueError, "carries a gradient back"),
        (lambda x: torch.ones(3), X, ValueError, "carries a gradient back"),
        (torch.sin, torch.zeros(0), ValueError, "with numbers in it"),
        (3, X, ValueError, "given an int"),
    ],
)
def test_what_gives_nothing_to_compare_is_an_error(
    function: Any, inputs: Tensor, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        gradcheck_function(function, inputs)
    assert message in explain(caught.value)


def test_a_model_s_own_exception_is_raised_as_it_is() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("no such layer")

    with pytest.raises(KeyError, match="no such layer"):
        gradcheck(Broken(2, 2), F.mse_loss, (X, ZEROS))


class Restless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight * torch.randn(3, 2, generator=self.generator)


class Single(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "batch"),
    [(Restless(), (X, ZEROS)), (Single(2, 2), (X, ZEROS)), (nn.Linear(2, 2), (torch.zeros(0, 2), torch.zeros(0, 2)))],
    ids=["restless", "float32", "empty"],
)
def test_a_model_of_which_no_derivative_was_compared_is_not_ok(model: nn.Module, batch: Any) -> None:
    check = gradcheck(model, lambda y, t: (y - t).square().sum(), batch)
    assert not check.ok
    assert not check.checked
    assert check.failures == ()
    assert str(check).startswith("unvanish gradcheck: NOTHING WAS COMPARED")
    assert "not checked: the model" in str(check)


def test_an_identity_is_right() -> None:
    assert gradcheck_function(lambda x: x, X).ok
    assert gradcheck_function(lambda x: F.dropout(x, training=False), X).ok


def with_nan(values: Tensor, *index: int) -> Tensor:
    values = values.clone()
    values[index] = math.nan
    return values


def broken(name: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).eval()
    tensor = model.get_parameter(name) if "running" not in name else model.get_buffer(name)
    tensor.data[-1] = math.nan
    return model


def blamed(check: GradientCheck) -> list[str]:
    assert not check.ok
    assert all("NaN" in failure.problem for failure in check.failures)
    return [failure.where for failure in check.failures]


@pytest.mark.parametrize(
    ("check", "places"),
    [
        (lambda: gradcheck(nn.Linear(2, 2), F.mse_loss, (with_nan(X, 1, 0), ZEROS)), ["batch[0][1, 0]"]),
        (lambda: gradcheck(nn.Linear(2, 2), F.mse_loss, (X, with_nan(ZEROS, 2, 1))), ["batch[1][2, 1]"]),
        (lambda: gradcheck(broken("0.bias"), F.mse_loss, (X, ZEROS)), ["0.bias[1]"]),
        (lambda: gradcheck(broken("2.weight"), F.mse_loss, (X, ZEROS)), ["2.weight[1, 0]"]),
        (lambda: gradcheck(broken("0.bias").requires_grad_(False), F.mse_loss, (X, ZEROS)), None),
        (lambda: gradcheck(broken("1.running_mean"), F.mse_loss, (X, ZEROS)), ["1.running_mean[1]"]),
        (lambda: gradcheck(broken("0.bias"), F.mse_loss, (with_nan(X, 1, 0), ZEROS)), ["0.bias[1]"]),
        (lambda: gradcheck_function(torch.sin, with_nan(X, 1, 1)), ["sin (function) input[1, 1]"]),
        (lambda: gradcheck_function(torch.sqrt, -X.abs()), ["sqrt (function) output"]),
    ],
    ids=["input", "target", "bias", "weight", "frozen", "buffer", "both", "function", "made"],
)
def test_a_nan_is_blamed_where_it_came_in(check: Callable[[], GradientCheck], places: list[str] | None) -> None:
    if places is None:
        with pytest.raises(ValueError, match="No parameter of the model"):
            check()
    else:
        assert blamed(check()) == places


def test_a_nan_in_a_frozen_weight_or_a_nested_one() -> None:
    model = broken("0.bias")
    model[0].requires_grad_(False)
    assert blamed(gradcheck(model, F.mse_loss, (X, ZEROS))) == ["0.bias[1]"]
    attention = nn.MultiheadAttention(2, 1)
    attention.out_proj.bias.data[0] = math.nan
    check = gradcheck(attention, lambda y, _: y[0].sum(), ((X, X, X), ZEROS))
    assert blamed(check) == ["out_proj.bias[0]"]


def test_a_nan_that_is_masked_out_harms_nothing() -> None:
    def masked(y: Tensor, t: Tensor) -> Tensor:
        return (y - t)[~t.isnan()].square().sum()

    check = gradcheck(nn.Linear(2, 2), masked, (X, with_nan(ZEROS, 0, 0)))
    assert check.ok, check
    assert check.loss is not None
    assert check.loss.ok


def test_the_headline_counts_only_what_it_speaks_of() -> None:
    text = str(gradcheck(nn.Linear(2, 2), F.mse_loss, (with_nan(X, 0, 0), ZEROS)))
    assert text.startswith("unvanish gradcheck: FAILED (0 modules checked")
    assert "What to do: mend batch[0][0, 0] first" in text
    assert "(1 module checked" in str(gradcheck_function(torch.sin, X))


@pytest.mark.parametrize("function", [torch.sign, torch.floor])
def test_a_jump_at_every_place_is_not_called_right(function: Callable[[Tensor], Tensor]) -> None:
    check = gradcheck_function(function, torch.zeros(4))
    assert check.failures == ()
    assert not check.checked
    assert "no smooth place" in str(check)
