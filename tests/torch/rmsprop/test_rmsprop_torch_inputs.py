"""PyTorch's own optimizer inputs, from ``torch.testing._internal``, on the preset that stands for its RMSprop."""

from __future__ import annotations

import itertools
import warnings
from copy import deepcopy

import pytest
import torch

pytest.importorskip("expecttest")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's test helpers import what is deprecated
    from torch.testing._internal.common_optimizers import (
        optim_db,
        optim_error_inputs_func_rmsprop,
        optim_inputs_func_rmsprop,
    )

from unvanish.torch.rmsprop import RMSprop

INFO = next(info for info in optim_db if info.optim_cls is torch.optim.RMSprop)
INPUTS = optim_inputs_func_rmsprop("cpu") + [x for x in optim_inputs_func_rmsprop("cuda") if "capturable" in x.desc]
NAMES = [given.desc for given in INPUTS]
inputs = pytest.mark.parametrize("given", INPUTS, ids=NAMES)


def ours(parameters, given, way):
    capturable = given.kwargs.get("capturable", False)
    return RMSprop.like("torch", parameters, **given.kwargs, **({} if capturable else way))


def theirs(parameters, given):
    return torch.optim.RMSprop(parameters, **{k: v for k, v in given.kwargs.items() if k != "capturable"})


def problem(dtype=torch.float64):
    torch.manual_seed(0)
    weight, bias, x = (torch.randn(shape, dtype=dtype) for shape in ((10, 5), (10,), (5,)))
    return torch.nn.Parameter(weight), torch.nn.Parameter(bias), x


def loss_of(weight, bias, x):
    out = weight.mv(x) + bias
    return (out.real.square() + (out.imag.square() if out.is_complex() else 0)).sum()


def plain(way):
    return {} if "differentiable" in way else way


def test_torch_has_still_the_settings_this_was_written_for():
    assert len(optim_inputs_func_rmsprop("cpu")) >= 8
    assert "fused" not in INFO.supported_impls


@inputs
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_equals_torch_over_ten_steps(given, way, dtype):
    ends = []
    for make in (lambda p: ours(p, given, plain(way)), lambda p: theirs(p, given)):
        weight, bias, x = problem(dtype)
        optimizer = make([weight, bias])
        for _ in range(10):
            optimizer.zero_grad()
            loss_of(weight, bias, x).backward()
            optimizer.step()
        ends.append([weight.detach(), bias.detach()])
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@inputs
@pytest.mark.parametrize("scheduler", [None, *INFO.scheduler_inputs[0]])
def test_goes_in_the_right_direction(given, way, scheduler):
    weight, bias, x = problem()
    optimizer = ours([weight, bias], given, plain(way))
    schedule = None if scheduler is None else scheduler(optimizer)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(weight, bias, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            schedule.step(loss.detach())
        elif schedule is not None:
            schedule.step()
    up = given.kwargs.get("maximize", False)
    assert losses[-1] > losses[0] if up else losses[-1] < losses[0]


@inputs
def test_a_step_with_zero_gradients_is_none(given, way):
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = ours([w], given, plain(way))
    w.grad = torch.zeros(3)
    optimizer.step()
    moved = w.detach() != 1
    assert moved.all() if given.kwargs.get("weight_decay") else not moved.any()


@inputs
def test_state_dict_and_deepcopy_go_on_alike(given, way):
    weight, bias, x = problem()
    optimizer = ours([weight, bias], given, plain(way))

    def steps(parameters, stepper):
        for _ in range(3):
            stepper.zero_grad()
            loss_of(*parameters, x).backward()
            stepper.step()
        return [p.detach().clone() for p in parameters]

    steps((weight, bias), optimizer)
    copied = deepcopy((weight, bias, optimizer))
    loaded = deepcopy((weight, bias))
    other = ours(list(loaded), given, plain(way))
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    expected = steps((weight, bias), optimizer)
    assert all(map(torch.equal, steps(copied[:2], copied[2]), expected))
    assert all(map(torch.equal, steps(loaded, other), expected))


@inputs
def test_groups_with_their_own_rate_and_decay(given, way):
    ends = []
    for make in (lambda p: ours(p, given, plain(way)), lambda p: theirs(p, given)):
        weight, bias, x = problem()
        optimizer = make([{"params": [weight], "weight_decay": 0.0}, {"params": [bias], "lr": 0.003}])
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(weight, bias, x).backward()
            optimizer.step()
        ends.append([weight.detach(), bias.detach()])
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "error", optim_error_inputs_func_rmsprop("cpu", torch.float32), ids=lambda e: e.optimizer_error_input.desc
)
def test_refuses_what_torch_refuses(error):
    given = error.optimizer_error_input
    parameters = [torch.nn.Parameter(torch.randn(1, 1))] if given.params is None else given.params
    context = (
        pytest.warns(error.error_type) if issubclass(error.error_type, Warning) else pytest.raises(error.error_type)
    )
    with context:
        RMSprop.like("torch", parameters, **given.kwargs)


def test_foreach_and_loop_agree_for_every_pair_of_inputs(way):
    """Also where two groups of one optimizer are set differently."""
    for first, second in itertools.combinations(optim_inputs_func_rmsprop("cpu"), 2):
        ends = []
        for chosen in (plain(way), {"foreach": False}):
            weight, bias, x = problem()
            groups = [{"params": [weight], **first.kwargs}, {"params": [bias], **second.kwargs}]
            optimizer = RMSprop.like("torch", groups, **chosen)
            for _ in range(2):
                optimizer.zero_grad()
                loss_of(weight, bias, x).backward()
                optimizer.step()
            ends.append([weight.detach(), bias.detach()])
        torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
