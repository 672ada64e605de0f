"""One term of several: its level against its definition, and the backward pass without the others against autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import close
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.probe.graph import read_graph
from unvanish.torch.views.terms import Term, find_term


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def code_penalty(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    return model[1](model[0](x)).abs().sum()


def weight_penalty(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    return sum((p.square().sum() for p in model.parameters()), torch.zeros(()))


def entropy(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    p = model(x).softmax(-1)
    return (p * p.log()).sum(-1).mean()


def unknown_loss(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model[0](x), torch.zeros(len(x), 8))  # of a constant target: nothing to learn


OTHERS: dict[str, Callable[[nn.Sequential, Tensor, Tensor], Tensor]] = {
    "code": code_penalty, "weights": weight_penalty, "entropy": entropy, "zeros": unknown_loss
}  # fmt: skip


def found(loss: Tensor) -> Term | None:
    return find_term(read_graph(loss, set()))


def classes(scores: Tensor, y: Tensor) -> tuple[Tensor, float]:
    counts = torch.bincount(y, minlength=3).double() / len(y)
    return F.cross_entropy(scores, y), -float(torch.xlogy(counts, counts).sum())


def values(scores: Tensor, y: Tensor) -> tuple[Tensor, float]:
    wanted = torch.stack([y.float(), y.float() ** 2, -y.float()], 1)
    return F.mse_loss(scores, wanted), float(wanted.double().var(0, correction=0).mean())


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("data", [classes, values])
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 300.0]), st.booleans())
def test_a_terms_level_and_its_gradient_alone(
    other: str, data: Callable[[Tensor, Tensor], tuple[Tensor, float]], seed: int, factor: float, last: bool
) -> None:
    torch.manual_seed(seed)
    model, x, y = net(), torch.randn(12, 5), torch.arange(12) % 3
    term, best = data(model(x), y)
    penalty = factor * OTHERS[other](model, x, y)
    loss = (penalty + 2 * term if last else 2 * term + penalty) / 4
    wanted = torch.autograd.grad(term / 2, list(model.parameters()), retain_graph=True)
    seen = found(loss)
    assert seen is not None
    close(seen.level, float(term.detach()) / best, 1e-5)
    close(seen.value, float(term.detach()), 1e-5)
    seen.alone()
    loss.backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-9)


def test_a_terms_own_value_counts_its_reduction_but_not_the_users() -> None:
    model, x, y = net(), torch.randn(12, 5), torch.arange(12) % 3
    penalty = code_penalty(model, x, y)
    summed = F.cross_entropy(model(x), y, reduction="sum")
    first, second = found(summed + penalty), found(F.cross_entropy(model(x), y, reduction="none").sum() + penalty)
    assert first is not None
    assert second is not None
    close(first.value, float(summed.detach()), 1e-4)
    assert second.value is None
    close(second.level, first.level, 1e-6)


def test_a_term_by_itself_is_the_whole_loss() -> None:
    model, x, y = net(), torch.randn(12, 5), torch.arange(12) % 3
    assert found(F.cross_entropy(model(x), y)) is None
    assert found(0.5 * F.cross_entropy(model(x), y) / 3) is None
    assert found(F.cross_entropy(model(x), y) + 1.0) is None


def test_a_factor_is_no_term() -> None:
    model, x, y = net(), torch.randn(12, 5), torch.arange(12) % 3
    each = F.cross_entropy(model(x), y, reduction="none")
    assert found(((1 - (-each).exp()) ** 2 * each).mean()) is None  # the focal loss
    assert found(F.cross_entropy(model(x), y) * model[0](x).abs().mean()) is None


def test_a_term_of_nothing_is_not_known() -> None:
    model, x, y = net(), torch.randn(12, 5), torch.arange(12) % 3
    z = model(x)
    none = torch.zeros(12, dtype=torch.bool)
    seen = found(F.mse_loss(z[none], torch.randn(12, 3)[none], reduction="sum") + F.cross_entropy(z, y))
    assert seen is not None
    assert seen.kind == "cross_entropy"


def test_of_two_terms_that_are_known_none_is_the_one() -> None:
    model, x, y = net(), torch.randn(12, 5), torch.arange(12) % 3
    two = F.cross_entropy(model(x), y) + F.mse_loss(model[0](x), torch.randn(12, 8))
    assert found(two) is None


def test_a_loss_of_plain_ops_has_no_term_that_is_known() -> None:
    model, x = net(), torch.randn(12, 5)
    assert found(model(x).square().mean() + model(x).abs().sum()) is None
