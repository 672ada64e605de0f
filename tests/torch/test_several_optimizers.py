"""Several optimizers on one loss are judged as one optimizer with their groups, and stay as they are."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import unvanish
from unvanish.torch.rehearsal.copies import working_copy
from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.rehearsal.rehearse import take_step
from unvanish.torch.rehearsal.together import parts_of, together

Batches = list[tuple[Tensor, Tensor]]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def batches() -> Batches:
    torch.manual_seed(1)
    inputs = [torch.randn(32, 8) for _ in range(4)]
    return [(x, x[:, :3].argmax(1)) for x in inputs]


def groups(model: nn.Module, rates: tuple[float, float]) -> list[dict[str, Any]]:
    weights = [[p for p in model.parameters() if p.ndim == n] for n in (2, 1)]
    return [{"params": held, "lr": lr} for held, lr in zip(weights, rates, strict=True)]


def state(optimizers: list[Optimizer]) -> Any:
    return [
        deepcopy((part.state_dict(), {name: id(value) for name, value in vars(part).items()})) for part in optimizers
    ]


@pytest.mark.parametrize("rates", [(1e-2, 1e-3), (1e-9, 1e-9), (5.0, 1e-2)])
def test_a_diagnosis_is_that_of_one_optimizer_with_their_groups(rates: tuple[float, float]) -> None:
    divided = network()
    optimizers: list[Optimizer] = [Adam([group]) for group in groups(divided, rates)]
    whole = network()
    expected = unvanish.diagnose(whole, nn.CrossEntropyLoss(), batches(), Adam(groups(whole, rates)))
    before = state(optimizers)
    found = unvanish.diagnose(divided, nn.CrossEntropyLoss(), batches(), optimizers)
    assert found.to_json() == expected.to_json()
    assert state(optimizers) == before


def test_a_step_of_the_copy_is_a_step_of_each_and_none_of_the_originals() -> None:
    model, (batch, *_) = network(), batches()
    adam, sgd = (kind([group]) for kind, group in zip((Adam, SGD), groups(model, (1e-2, 0.1)), strict=True))
    expected, goal = deepcopy(model), Objective(nn.CrossEntropyLoss(), None)
    stepper = together([adam, sgd])
    assert stepper is not None
    before = state([adam, sgd])
    work = working_copy(model, stepper, ())
    assert work.optimizer is not None
    own = [kind([group]) for kind, group in zip((Adam, SGD), groups(expected, (1e-2, 0.1)), strict=True)]
    for _ in range(3):
        for net in (work.model, expected):
            net.zero_grad()
            goal.run(net, batch).backward()
        take_step(work.model, work.optimizer, goal, batch)
        for part in own:
            part.step()
    assert all(torch.equal(p, q) for p, q in zip(work.model.parameters(), expected.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))
    assert state([adam, sgd]) == before
    assert [type(part) for part in parts_of(work.optimizer)] == [Adam, SGD]


def test_a_warm_up_of_one_of_them_stands_at_its_full_rate() -> None:
    model = network()
    first, second = (Adam([group]) for group in groups(model, (1e-2, 1e-3)))
    LambdaLR(second, lambda step: min(1.0, step / 100))
    assert second.param_groups[0]["lr"] == 0
    found = unvanish.diagnose(model, nn.CrossEntropyLoss(), batches(), [first, second])
    assert found.flow.optimizer is not None
    assert found.flow.optimizer.learning_rates == (1e-2, 1e-3)
    assert second.param_groups[0]["lr"] == 0


def test_weights_that_none_of_them_holds_are_noted() -> None:
    model = network()
    parts = [Adam([model[0].weight]), SGD([model[0].bias], lr=0.1)]
    found = unvanish.diagnose(model, nn.CrossEntropyLoss(), batches(), parts)
    held = {p.name: p.in_optimizer for p in found.flow.parameters}
    assert held == {"0.weight": True, "0.bias": True, "2.weight": False, "2.bias": False}
    assert found.flow.optimizer is not None
    assert found.flow.optimizer.name == "Adam and SGD"


def test_what_cannot_step_by_turns_is_refused() -> None:
    model = network()
    some = [LBFGS([model[0].weight]), Adam([model[2].weight])]
    for wrong in (some, [], [model]):
        with pytest.raises(ValueError, match=r"optimizer is .*\. (Expected|It must)"):
            unvanish.diagnose(model, nn.CrossEntropyLoss(), batches(), wrong)
