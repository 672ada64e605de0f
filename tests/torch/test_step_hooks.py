"""Hooks at the steps of the user's optimizer act on its copy, and never on the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import unvanish
from unvanish.torch.centered import CenteredUpdates
from unvanish.torch.rehearsal.copies import working_copy
from unvanish.torch.rehearsal.hooks import hooked

Batches = list[tuple[Tensor, Tensor]]


class Trainer:
    """Holds the schedule and no network."""

    def __init__(self, schedule: Any) -> None:
        self.schedule, self.rates = schedule, list[float]()

    def after(self, *_: Any) -> None:
        self.schedule.step()
        self.rates += self.schedule.get_last_lr()


class Hidden:
    """Where nothing looks for an optimizer."""

    __slots__ = ("optimizer",)

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer


def by_closure(optimizer: Optimizer, schedule: LambdaLR) -> Callable[..., None]:
    return lambda *_: schedule.step()


def by_argument(optimizer: Optimizer, schedule: LambdaLR) -> Callable[..., None]:
    def raised(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = min(1e-2, 2 * group["lr"])

    return raised


def by_trainer(optimizer: Optimizer, schedule: LambdaLR) -> Callable[..., None]:
    return Trainer(schedule).after


def by_hidden(optimizer: Optimizer, schedule: LambdaLR) -> Callable[..., None]:
    hidden = Hidden(optimizer)

    def raised(*_: Any) -> None:
        hidden.optimizer.param_groups[0]["lr"] += 1e-3

    return raised


HOOKS = [by_closure, by_argument, by_trainer, by_hidden]


def program(
    make: Callable[..., Any], rate: float = 1e-2, slow: float = 1e-7
) -> tuple[nn.Module, Batches, Optimizer, LambdaLR]:
    """A warm-up that begins at a rate at which nothing moves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    x = torch.randn(320, 8)
    y = (x @ torch.randn(8, 3)).argmax(1)
    optimizer = Adam(model.parameters(), lr=rate)
    schedule = LambdaLR(optimizer, lambda step: max(slow, min(1.0, step / 20)))
    optimizer.register_step_post_hook(make(optimizer, schedule))
    return model, list(zip(x.split(32), y.split(32), strict=True)), optimizer, schedule


@pytest.mark.parametrize("make", HOOKS)
def test_a_schedule_in_a_hook_raises_no_alarm_and_stays_where_it_was(make: Callable[..., Any]) -> None:
    model, batches, optimizer, schedule = program(make)
    before = schedule.state_dict(), optimizer.state_dict()
    diagnosis = unvanish.diagnose(model, nn.functional.cross_entropy, batches, optimizer)
    assert diagnosis.findings == ()
    assert (schedule.state_dict(), optimizer.state_dict()) == before
    assert any("hook" in one for one in diagnosis.flow.unobserved) == (make is by_hidden)


@pytest.mark.parametrize("make", HOOKS)
def test_the_hook_of_a_copy_knows_only_copies(make: Callable[..., Any]) -> None:
    model, batches, optimizer, schedule = program(make)
    work = working_copy(model, optimizer, ())
    assert work.optimizer is not None
    for _ in range(3):
        again = working_copy(work.model, work.optimizer, ())
        for one in (work, again):
            assert one.optimizer is not None
            nn.functional.cross_entropy(one.model(batches[0][0]), batches[0][1]).backward()
            one.optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-9)
    assert schedule.last_epoch == 0
    assert not optimizer.state
    assert hooked(work.optimizer) == (make is not by_hidden)
    rate = work.optimizer.param_groups[0]["lr"]
    assert rate > 2e-9
    assert (rate == 1e-2) == (make is by_hidden)  # nobody raises it there: it stands at the schedule's full rate


@pytest.mark.parametrize("rate", [1e-2, 1e-10])
def test_a_warm_up_is_rehearsed_at_its_full_rate_which_is_not_judged(rate: float) -> None:
    model, batches, optimizer, _ = program(by_closure, rate, slow=0.01)
    optimizer._optimizer_step_post_hooks.clear()  # the program steps its schedule itself
    diagnosis = unvanish.diagnose(model, nn.functional.cross_entropy, batches, optimizer)
    assert not any(one.cause.startswith("learning-rate") for one in diagnosis.findings)
    assert diagnosis.flow.optimizer is not None
    assert (diagnosis.flow.optimizer.learning_rates, diagnosis.flow.optimizer.given) == ((rate,), False)
    assert any("schedule" in one for one in diagnosis.flow.unobserved)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate / 100)
    assert (diagnosis.learns is True) == (rate == 1e-2)


def test_a_schedule_that_never_leaves_a_tiny_rate_is_still_found() -> None:
    model, batches, optimizer, _ = program(by_closure, rate=1e-10)
    diagnosis = unvanish.diagnose(model, nn.functional.cross_entropy, batches, optimizer)
    assert [one.cause for one in diagnosis.findings] == ["learning-rate-low"]


def test_a_rate_that_an_experiment_multiplies_stays_multiplied() -> None:
    model, _, optimizer, _ = program(by_closure)
    work = working_copy(model, optimizer, ())
    assert work.optimizer is not None
    (group,) = work.optimizer.param_groups
    rates = []
    group["lr"] *= 10
    for _ in range(3):
        work.optimizer.step()
        rates.append(group["lr"])
    assert rates == pytest.approx([10 * 1e-2 * step / 20 for step in (1, 2, 3)])


def test_a_hook_that_prints_is_silent_on_a_copy(capsys: pytest.CaptureFixture[str]) -> None:
    model, _, optimizer, _ = program(by_closure)
    optimizer.register_step_pre_hook(lambda *_: print("a step"))  # noqa: T201 - as users do
    work = working_copy(model, optimizer, ())
    assert work.optimizer is not None
    work.optimizer.step()
    assert capsys.readouterr().out == ""
    optimizer.step()
    assert capsys.readouterr().out == "a step\n"


def test_a_wrapper_that_works_by_hooks_works_once() -> None:
    model, batches, optimizer, _ = program(by_argument, slow=1.0)
    centered = CenteredUpdates(optimizer)
    trained = []
    for one in (centered, centered.inner):
        work = working_copy(model, one, ())
        assert work.optimizer is not None
        assert hooked(work.optimizer)
        for x, y in batches:
            work.optimizer.zero_grad()
            nn.functional.cross_entropy(work.model(x), y).backward()
            work.optimizer.step()
        trained.append(torch.cat([p.detach().flatten() for p in work.model.parameters()]))
    for x, y in batches:
        centered.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        centered.step()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(trained[0], expected)
    assert torch.equal(trained[1], expected)
