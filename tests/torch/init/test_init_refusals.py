"""What a user cannot have meant is refused in three parts, before anything of the model has changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unvanish.torch.init import (
    chrono_,
    he_,
    initialize_,
    learning_rate,
    lsuv_,
    mirrored_,
    operating_point_,
    orthogonal_,
    xavier_,
)

X = torch.ones(6, 4).cumsum(0)
NAN, INF = float("nan"), float("inf")
WHOLE = {"initialize_": initialize_, "operating_point_": operating_point_, "mirrored_": mirrored_}
CLASSIC = {"xavier_": xavier_, "he_": he_, "orthogonal_": orthogonal_}
CALLS: dict[str, Callable[..., Any]] = {
    **WHOLE,
    **CLASSIC,
    "lsuv_": lambda model, **kw: lsuv_(model, X, **kw),
    "chrono_": lambda model, **kw: chrono_(model, 10, **kw),
}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def refused(call: Callable[[], object], what: str) -> None:
    """Says what happened, what was expected, and, in a last sentence of its own, how to mend it."""
    with pytest.raises(ValueError, match=re.escape(what)) as caught:
        call()
    words = str(caught.value)
    assert re.search(r"\. Expected .+\. \S.+[.?]$", words), words


def test_unknown_activation() -> None:
    refused(lambda: he_(net(), activation="tahn"), "No activation named 'tahn' is known")
    refused(lambda: he_(net(), activation=["relu"]), "named ['relu']")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Did you mean 'tanh'"):
        he_(net(), activation="tahn")
    with pytest.raises(ValueError, match="Did you mean 'leaky_relu'"):
        he_(net(), activation="LeakyReLU")


@pytest.mark.parametrize("name", [*CALLS, "learning_rate"])
@pytest.mark.parametrize(
    ("model", "what"),
    [
        (None, "got a NoneType as its model"),
        (nn.Linear, "got the class Linear as its model"),
        (nn.Linear(4, 4, device="meta"), "weight is on the meta device"),
    ],
    ids=["none", "class", "meta"],
)
def test_no_model(name: str, model: Any, what: str) -> None:
    refused(lambda: (CALLS | {"learning_rate": learning_rate})[name](model), f"{name}")
    refused(lambda: (CALLS | {"learning_rate": learning_rate})[name](model), what)


@pytest.mark.parametrize("name", list(CALLS))
@pytest.mark.parametrize("generator", [3, "seed", torch.get_rng_state()], ids=["number", "text", "state"])
def test_no_generator(name: str, generator: Any) -> None:
    refused(lambda: CALLS[name](net(), generator=generator), f"{name} got generator=")


@pytest.mark.parametrize("name", list(CALLS))
@pytest.mark.parametrize(
    ("keep", "what"),
    [
        (None, "keep=None says nothing to keep"),
        (0, "keep=0 says nothing"),
        ("12", "no parameter or module named '12'"),
        (["0", "encoder"], "named 'encoder'"),
        ([3], "no parameter or module 3"),
        (nn.Linear(4, 4), "no module that is this Linear"),
        (nn.Tanh(), "no module that is this Tanh"),
        ([torch.ones(2, 3)], "this tensor of shape (2, 3)"),
    ],
    ids=["none", "number", "text", "names", "numbers", "module", "module without weights", "tensor"],
)
def test_nothing_to_keep(name: str, keep: Any, what: str) -> None:
    model = nn.ModuleList([nn.LSTM(4, 4)]) if name == "chrono_" else net()
    before = [p.clone() for p in model.parameters()]
    refused(lambda: CALLS[name](model, keep=keep), what)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("keep", ["2", "2.weight", ["2"], lambda m: m[2], lambda m: [m[2]], lambda m: iter([m[2]])])
def test_one_name_or_several(keep: Any) -> None:
    """The name "2" is one name, and a text is not a list of letters."""
    model = net()
    before = model[2].weight.clone()
    orthogonal_(model, keep=keep(model) if callable(keep) else keep)
    assert torch.equal(model[2].weight, before)


def test_a_module_without_weights_may_be_kept() -> None:
    model = net()
    before = model[0].weight.clone()
    orthogonal_(model, keep=["1", model[3]])
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("value", [NAN, INF, 0, -1.0, "2", None, 1j, torch.ones(2)], ids=str)
def test_numbers(value: Any) -> None:
    refused(lambda: orthogonal_(net(), gain=value), "orthogonal_ got gain=")
    refused(lambda: xavier_(net(), gain=value), "xavier_ got gain=")
    refused(lambda: lsuv_(net(), X, std=value), "lsuv_ got std=")
    refused(lambda: chrono_(nn.LSTM(4, 4), value), "chrono_ got steps=")
    if value is not None:  # the default
        refused(lambda: learning_rate(net(), X, c=value), "learning_rate got c=")


def test_too_few_steps_and_no_gates() -> None:
    refused(lambda: chrono_(nn.LSTM(4, 4), 2), "sequences of 2 steps need no long memory")
    refused(lambda: chrono_(nn.RNN(4, 4), 20), "no gate to set in RNN")


@pytest.mark.parametrize("name", [*WHOLE, "lsuv_", "learning_rate"])
@pytest.mark.parametrize(
    ("batch", "what"),
    [
        (torch.ones(0, 4), "the batch is of shape (0, 4): empty"),
        (torch.full((6, 4), NAN), "the batch of shape (6, 4) holds NaN or Inf"),
        ((torch.full((6, 4), INF),), "holds NaN or Inf"),
        ({"input": torch.full((6, 4), -INF)}, "holds NaN or Inf"),
    ],
    ids=["empty", "nan", "in a tuple", "in a mapping"],
)
def test_batches(name: str, batch: Any, what: str) -> None:
    functions: dict[str, Callable[[nn.Module, Tensor], object]] = {
        **WHOLE, "lsuv_": lsuv_, "learning_rate": learning_rate,
    }  # fmt: skip
    refused(lambda: functions[name](net(), batch), f"{name}: the batch")
    refused(lambda: functions[name](net(), batch), what)


def test_lsuv_needs_a_batch() -> None:
    refused(lambda: lsuv_(net(), None), "lsuv_: the batch is None")
