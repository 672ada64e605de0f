"""Nothing of the user's changes but the weights that the result names: bit for bit, in training mode too."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unvanish.torch.init import initialize_, learning_rate, lsuv_, mirrored_, operating_point_

X = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
WHOLE = {"initialize_": initialize_, "operating_point_": operating_point_, "mirrored_": mirrored_}


class Counting(nn.Module):
    """A buffer that changes in place at every forward pass, and noise from all three streams."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 0.01 * torch.randn_like(x) + random.random() + np.random.rand()


class Replacing(nn.Module):
    """A buffer that every forward pass puts another tensor in the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach().mean().reshape(1)
        return x


def net() -> nn.Sequential:
    torch.manual_seed(0)
    square = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    model = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Dropout(0.5), Counting(), square, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    model[11].requires_grad_(False)
    for parameter in list(model.parameters())[::2]:
        parameter.grad = torch.randn_like(parameter)
    model[6].register_forward_hook(lambda *_: None)
    return model


def state(model: nn.Module) -> dict[str, Any]:
    """All of it, as bits: NaN and the sign of zero count, and so does the memory that a tensor lies in."""
    kinds: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state()[1].tobytes()}
    kinds["torch"] = torch.get_rng_state().numpy().tobytes()
    kinds["modes"] = [module.training for module in model.modules()]
    kinds["hooks"] = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()
    ]
    for name, buffer in model.named_buffers():
        kinds[f"buffer {name}"] = buffer.numpy().tobytes()
    for name, p in model.named_parameters():
        grad = None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes())
        kinds[f"about {name}"] = (id(p), p.data_ptr(), p.requires_grad, p.grad_fn, grad)
        kinds[f"weight {name}"] = p.detach().numpy().tobytes()
    return kinds


def changed(model: nn.Module, call: Callable[[], object]) -> tuple[set[str], Any]:
    before, x = state(model), X.clone()
    result = call()
    after = state(model)
    assert torch.equal(x, X)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}, result


quiet = pytest.mark.filterwarnings("ignore:The initialisation of Sequential is not good")  # what it is is not asked


@quiet
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(WHOLE))
def test_only_the_weights_that_the_result_names(name: str, training: bool) -> None:
    model = net().train(training)
    model[7].train(not training)
    names, done = changed(model, lambda: WHOLE[name](model, X, keep="13", generator=torch.Generator().manual_seed(1)))
    weights = {f"weight {action.name}" for action in done.actions}
    assert weights == {"weight 0.weight", "weight 2.weight", "weight 4.weight"}
    assert weights <= names <= weights | {weight.replace(".weight", ".bias") for weight in weights}


@quiet
@pytest.mark.parametrize("name", list(WHOLE))
def test_without_a_generator_torchs_stream_moves_by_one_number(name: str) -> None:
    model = net()
    names, _ = changed(model, lambda: WHOLE[name](model, X))
    after = torch.get_rng_state()
    net()
    torch.randint(2**62, ())
    assert torch.equal(torch.get_rng_state(), after)
    assert {name for name in names if not name.startswith("weight ")} == {"torch"}


def test_lsuv_changes_weights_and_biases_only() -> None:
    model = net()
    with pytest.warns(UserWarning, match="parametrisation are left"):
        names, _ = changed(model, lambda: lsuv_(model, X, generator=torch.Generator().manual_seed(1)))
    assert names == {f"weight {layer}.{kind}" for layer in (0, 2, 4, 13) for kind in ("weight", "bias")}


@pytest.mark.parametrize("batch", [X, None], ids=["batch", "no batch"])
def test_learning_rate_changes_nothing(batch: Tensor | None) -> None:
    model = net()
    assert changed(model, lambda: learning_rate(model, batch))[0] == set()


@pytest.mark.parametrize("call", [initialize_, operating_point_, mirrored_, learning_rate])
def test_a_model_that_raises_is_left_as_it_was(call: Callable[..., object]) -> None:
    """Buffers and random streams of the half that ran, too."""
    model = nn.Sequential(nn.BatchNorm1d(8), Counting(), nn.Linear(7, 3))

    def refused() -> None:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            call(model, X)

    assert changed(model, refused)[0] == set()


@pytest.mark.parametrize("call", [initialize_, operating_point_, learning_rate])
def test_buffers_that_are_replaced_are_put_back(call: Callable[..., object]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), Replacing(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    names, _ = changed(model, lambda: call(model, X))
    assert not [name for name in names if name.startswith("buffer")]
