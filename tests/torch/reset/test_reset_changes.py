"""What a user changes while UnitReset is at work, and what it cannot work on."""

from __future__ import annotations

import io
import math

import pytest
import torch
from reset_nets import DEAD, plain, seeded
from torch import nn

from unvanish.torch.reset import Dead, UnitReset

X = torch.randn(64, 4, generator=seeded(3), dtype=torch.float64)


def dead_at(model, layer, unit):
    model[layer].bias.data[unit] = DEAD
    return model


def reset_of(model, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(model.parameters())
    return UnitReset(model, optimizer, Dead(patience=1), every=1, maturity=0)


def small():
    torch.manual_seed(0)
    return dead_at(plain(4, 8, 2).double(), 0, 3)


def test_weights_of_another_optimizer_are_left_alone_and_named():
    """What the other optimizer keeps of the units could not be reset with them."""
    model = small()
    before = [p.clone() for p in model.parameters()]
    report = reset_of(model, torch.optim.Adam(model[2].parameters())).check(X)
    assert not report.events
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert any(left.layer == "0" and "0.weight is not in the optimizer" in left.why for left in report.not_resettable)


def test_a_group_added_later_is_taken_up():
    model = small()
    optimizer = torch.optim.Adam(model[2].parameters())
    reset = reset_of(model, optimizer)
    assert not reset.check(X).events
    optimizer.add_param_group({"params": model[0].parameters()})
    assert reset.check(X).events[0].units == (3,)


def test_parameters_that_unfreeze_are_taken_up():
    model = small()
    model[0].weight.requires_grad_(False)
    reset = reset_of(model)
    assert not reset.check(X).events
    model[0].weight.requires_grad_(True)
    assert reset.check(X).events[0].units == (3,)


@pytest.mark.parametrize("width", [8, 9])
def test_layers_that_are_replaced_are_the_ones_that_are_reset(width):
    model = small()
    reset = reset_of(model)
    reset.check(X)
    old = [p.clone() for p in model.parameters()]
    kept = list(model.parameters())
    model[0], model[2] = nn.Linear(4, width).double(), nn.Linear(width, 3).double()
    reset._surgeon.optimizer.add_param_group({"params": model.parameters()})
    dead_at(model, 0, 1)
    y = model(X)
    (event,) = reset.check(X).events
    assert (event.units, event.of) == ((1,), width)
    torch.testing.assert_close(model(X), y, rtol=0, atol=1e-12)
    assert not model[2].weight[:, 1].any()
    assert all(torch.equal(p, q) for p, q in zip(old, kept, strict=True))


def test_a_state_of_other_widths_is_refused_before_anything_changes():
    reset = reset_of(small())
    reset.check(X)
    other = dead_at(plain(4, 9, 2).double(), 0, 3)
    before = [p.clone() for p in other.parameters()]
    second = reset_of(other)
    second.load_state_dict(reset.state_dict())
    with pytest.raises(ValueError, match="remembers 8 units of 0, which has 9"):
        second.check(X)
    assert all(torch.equal(p, q) for p, q in zip(before, other.parameters(), strict=True))


def test_an_empty_batch_is_refused():
    model = small()
    reset = reset_of(model)
    for _ in range(2):  # before the layout is known and after
        with pytest.raises(ValueError, match="batch without samples: the units of 0"):
            reset.check(X[:0])
        reset.check(X)


def test_parameters_without_numbers_are_refused():
    with torch.device("meta"):
        model = plain(4, 8, 2)
    with pytest.raises(ValueError, match=r"meta device \(0.weight and 3 more\)"):
        reset_of(model)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_check_works_where_gradients_are_off(mode):
    first, second = small(), small()
    expected = reset_of(first).check(X).events
    with mode():
        found = reset_of(second).check(X * 1.0).events
    assert found == expected
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_an_activation_of_the_bare_input_is_measured_in_inference_mode():
    """Its input is then a tensor that autograd would refuse."""
    torch.manual_seed(0)
    model = dead_at(nn.Sequential(nn.ReLU(inplace=False), *small()), 1, 3)
    with torch.inference_mode():
        assert reset_of(model).check(X * 1.0).events[0].units == (3,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_goes_without_a_trace(bad):
    model = small()
    with torch.no_grad():
        model[2].weight[0, 3] = bad
    bias = model[2].bias.clone()
    (event,) = reset_of(model).check(X).events
    assert event.units == (3,)
    assert event.compensated is False
    assert torch.equal(model[2].bias, bias)
    assert model(X).isfinite().all()


def test_averaged_models_schedulers_and_scaled_losses_go_on_bit_for_bit_after_a_break():
    """EMA, LR schedule and GradScaler beside UnitReset; everything saved in the middle, loaded weights-only."""

    def parts():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 8), nn.ReLU())
        model.append(nn.Linear(8, 2))
        model[0].bias.data[2], model[3].bias.data[4] = 50.0, DEAD
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        names = ("dead", "saturated", "dormant", "low-utility", "self-normalized")
        return model, optimizer, schedule, scaler, UnitReset(model, optimizer, names, every=3, maturity=5), average

    def train(model, optimizer, schedule, scaler, reset, average, steps):
        for step in steps:
            x = torch.randn(32, 4, generator=seeded(step))
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = (model(x).float().square().mean() - 1).square()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            reset.step(x)
            average.update_parameters(model)

    whole, file = parts(), io.BytesIO()
    train(*whole, steps=range(20))
    torch.save([part.state_dict() for part in whole], file)
    file.seek(0)
    train(*whole, steps=range(20, 40))
    again = parts()
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*again, steps=range(20, 40))
    assert {event.step for event in whole[4].events} & set(range(21, 41))
    assert {event.step for event in whole[4].events} & set(range(21))
    assert whole[4].events == again[4].events
    for one, other in ((whole[0], again[0]), (whole[5], again[5])):
        for key, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[key]), key


class Own(nn.Module):
    """``nn.Sequential`` itself is not compiled by its method ``compile``."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("inside", [False, True])
def test_compiled_parts_are_seen_as_written_and_nothing_is_compiled_for_a_check(inside):
    """``model.compile()`` and a compiled part of a model: no warning, no compilation of our own watching."""
    compiled = []

    def backend(graph, _example):
        compiled.append(graph)
        return graph.forward

    model = Own(torch.compile(small(), backend=backend) if inside else small())
    if not inside:
        model.compile(backend=backend)
    reset = reset_of(model)
    assert reset.check(X).events[0].units == (3,)
    reset.check(X[:7])
    assert not compiled
    model(X)
    assert compiled  # elsewhere as before
