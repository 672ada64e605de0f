"""Levers moved on copies: what they change, and that nothing else changes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam

from unvanish import reading
from unvanish.rules import _flows
from unvanish.torch.rehearsal.altered import features_last, movable, standardized, widened
from unvanish.torch.rehearsal.attempt import Attempt
from unvanish.torch.rehearsal.experiments import _at_length
from unvanish.torch.rehearsal.objective import Objective
from unvanish.types import Flow, Site


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def attempt(optimizer: type[torch.optim.Optimizer], batches: int = 1, **settings: float) -> tuple[Attempt, nn.Module]:
    model = nn.Linear(4, 1)
    held = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(batches)]
    made = optimizer(model.parameters(), **settings)  # type: ignore[arg-type]
    return Attempt(model, made, Objective(F.mse_loss, None), held, 12, None), model


def by_hand(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]], steps: int = 12
) -> list[float]:
    losses = []
    for step in range(steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize(
    ("lever", "factor", "given", "moved", "changing"),
    [
        ("none", 1.0, {"lr": 0.1}, {"lr": 0.1}, False),
        ("learning-rate", 0.1, {"lr": 0.1}, {"lr": 0.01}, False),
        ("learning-rate-in-training", 0.1, {"lr": 0.1}, {"lr": 0.01}, True),
        ("eps", 1e-6, {"lr": 0.1, "eps": 1.0}, {"lr": 0.1, "eps": 1e-6}, False),
    ],
)
def test_a_lever_is_the_same_training_by_hand(lever, factor, given, moved, changing) -> None:
    kind = Adam if "eps" in given else SGD
    tried, model = attempt(kind, 3, **given)
    before = [p.detach().clone() for p in model.parameters()]
    found = tried.run(lever, factor)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    batches = list(tried.batches) if changing else list(tried.batches[:1])
    expected = by_hand(model, kind(model.parameters(), **moved), batches)
    assert list(found.losses[:12]) == pytest.approx(expected, rel=1e-5)
    assert (found.lever, found.factor) == (lever, factor)


@pytest.mark.parametrize("binary", [False, True])
def test_scaled_logits_are_those_of_a_program_that_multiplies_them_itself(binary) -> None:
    model = nn.Linear(4, 3)
    x, y = torch.randn(8, 4), torch.rand(8, 3).round() if binary else torch.randint(3, (8,))
    loss_fn = nn.BCEWithLogitsLoss() if binary else nn.CrossEntropyLoss(label_smoothing=0.1)
    tried = Attempt(model, SGD(model.parameters(), lr=0.1), Objective(loss_fn, None), [(x, y)], 12, None)
    found = tried.run("logits", 10.0)
    other, losses = deepcopy(model), []
    optimizer = SGD(other.parameters(), lr=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_fn(10 * other(x), y)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    assert list(found.losses[:12]) == pytest.approx(losses, rel=1e-5)
    assert loss_fn(model(x), y).item() == pytest.approx(float(tried.run().losses[0]))  # nothing is scaled afterwards


def brisk(update: float) -> Flow:
    """A training whose first steps were of this size, and that has removed nothing."""
    flow = _flows.plain(stuck=True)
    assert (reading.trains(flow) or 0.0) < 0.1
    return replace(flow, steps=tuple(replace(step, largest_update_ratio=update) for step in flow.steps))


def test_a_half_learnt_batch_is_decided_by_longer_trainings() -> None:
    tried, model = attempt(SGD, 3, lr=0.1)
    made = _at_length(tried, brisk(0.5), 0.35)
    assert [(one.lever, one.factor) for one in made] == [("learning-rate-in-training", f) for f in (1.0, 0.1, 0.01)]
    for one in made:
        copy = deepcopy(model)
        expected = by_hand(copy, SGD(copy.parameters(), lr=0.1 * one.factor), list(tried.batches), 60)
        assert list(one.losses) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("update", "reached"), [(0.5, 0.05), (0.5, 0.6), (0.01, 0.35)])
def test_where_a_batch_or_its_steps_decide_nothing_is_waited_for(update: float, reached: float) -> None:
    assert _at_length(attempt(SGD, 3, lr=0.1)[0], brisk(update), reached) == ()


def site(kind: str, shape: tuple[int, ...]) -> Site:
    return Site("a", kind, kind, 0, shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "shape", "last"),
    [
        ("recurrent", (8, 5, 16), True),
        ("linear", (8, 5, 16), True),
        ("convolution", (8, 16, 5), False),
        ("convolution", (8, 16, 5, 5), False),
    ],
)
def test_features_of_sequences_lie_along_the_last_axis(kind: str, shape: tuple[int, ...], last: bool) -> None:
    class Seen:
        sites = (site("merge", shape), site(kind, shape))

    assert features_last(Seen()) is last  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "last", "axes"), [((8, 5, 3), True, (0, 1)), ((8, 3, 5), False, (0, 2)), ((8, 3), True, (0,))]
)
def test_every_feature_is_standardised(shape: tuple[int, ...], last: bool, axes: tuple[int, ...]) -> None:
    x = 1000 + 30 * torch.randn(shape, dtype=torch.float64) * torch.arange(1, shape[-1] + 1)
    scaled, y = standardized((x, "y"), inputs=True, last=last)
    assert y == "y"
    assert float(scaled.mean(axes).abs().max()) < 1e-9
    assert torch.allclose(scaled.std(axes, correction=0), torch.ones(1, dtype=torch.float64))


def test_constant_feature_stays_finite() -> None:
    scaled, _ = standardized((torch.full((8, 3), 7.0), None), inputs=True, last=True)
    assert torch.equal(scaled, torch.zeros(8, 3))


def test_only_odd_scales_of_plain_pairs_are_moved() -> None:
    pair = Objective(F.mse_loss, None)
    odd, usual = (100 * torch.randn(8, 3), torch.randn(8)), (torch.randn(8, 3), torch.randn(8))
    assert movable(pair, odd, "inputs-standardized")
    assert not movable(pair, usual, "inputs-standardized")
    assert not movable(pair, odd, "targets-standardized")
    assert not movable(Objective(None, lambda m, b: m(b)), odd, "inputs-standardized")
    assert not movable(pair, (torch.randint(9, (8, 3)), odd[1]), "inputs-standardized")


def test_half_precision_is_widened_wherever_it_is() -> None:
    half = torch.ones(2, dtype=torch.float16)
    wide = widened({"a": (half, [half, torch.ones(2, dtype=torch.int64)]), "b": "text"})
    assert wide["a"][0].dtype == wide["a"][1][0].dtype == torch.float32
    assert (wide["a"][1][1].dtype, wide["b"]) == (torch.int64, "text")
