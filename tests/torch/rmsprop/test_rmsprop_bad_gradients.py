"""One bad gradient is survived: by the parameter, by its state, and by everybody else's."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from unvanish.torch.rmsprop import RMSprop

BAD = [math.nan, math.inf, -math.inf]


def pair(way, **settings):
    """The same parameters twice, with their optimizers."""
    both = [torch.linspace(-1, 1, 7) for _ in range(2)]
    return *both, *(RMSprop([w], lr=0.1, **settings, **way) for w in both)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}, {"clip": 0.1}])
def test_a_bad_entry_has_no_part_in_the_step(way, bad, settings):
    w, other, optimizer, reference = pair(way, **settings)
    for step in range(4):
        w.grad, other.grad = torch.linspace(1, 2, 7), torch.linspace(1, 2, 7)
        if step == 1:
            w.grad[3], other.grad[3] = bad, 0.0
            before = {key: value[3].clone() for key, value in optimizer.state[w].items() if key.endswith(("avg", "er"))}
            position = w[3].item()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step()
            assert len(caught) == 1
            assert w[3].item() == position
            assert all(torch.equal(optimizer.state[w][key][3], value) for key, value in before.items())
        else:
            optimizer.step()
        reference.step()
    fine = [0, 1, 2, 4, 5, 6]
    assert w.isfinite().all()
    torch.testing.assert_close(w[fine], other[fine])
    assert int(optimizer.state[w]["skipped"]) == 1


def test_torch_is_poisoned_for_ever():
    """The case is real."""
    w = torch.ones(1)
    optimizer = torch.optim.RMSprop([w])
    for g in (math.nan, 1.0, 1.0):
        w.grad = torch.tensor([g])
        optimizer.step()
    assert w.isnan()


def test_the_warning_comes_once_and_names_the_parameter():
    model = torch.nn.Linear(2, 1)
    optimizer = RMSprop(model.named_parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.bias.grad[0] = math.nan
    with pytest.warns(UserWarning, match="1 entries of the gradient of bias are NaN or Inf") as caught:
        optimizer.step()
    assert caught[0].filename == __file__
    optimizer.step()
    assert optimizer.state[model.bias]["skipped"] == 2
    assert "skipped" not in optimizer.state[model.weight]


@pytest.mark.parametrize("huge", [1e19, 1e20, 3e38])
def test_one_huge_finite_gradient_does_not_freeze_a_float32_parameter(way, huge):
    """v recovers at the pace of exact arithmetic: rho^t, from the square of the limit 2^63."""
    w = torch.zeros(3)
    optimizer = RMSprop([w], lr=1.0, rho=0.5, **way)
    for t in range(200):
        w.grad = torch.tensor([1.0, huge if t == 0 else 1.0, -huge if t == 0 else 1.0])
        before = w.clone()
        optimizer.step()
        moved = (w - before).abs()
        assert moved.isfinite().all()
        assert (moved <= 1.5).all()
    assert optimizer.state[w]["square_avg"].isfinite().all()
    torch.testing.assert_close(moved, torch.ones(3), rtol=1e-4, atol=0)


def test_torch_freezes_for_ever():
    """The case is real."""
    w = torch.zeros(1)
    optimizer = torch.optim.RMSprop([w], lr=1.0, alpha=0.5)
    for t in range(200):
        w.grad = torch.tensor([1e20 if t == 0 else 1.0])
        optimizer.step()
    assert w.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("library", ["keras", "torch"])
def test_centred_never_ends_in_nan(way, dtype, library):
    """Constant gradients, as on a plateau or of a bias: elsewhere v - m^2 turns negative by rounding."""
    w = torch.zeros(400, dtype=dtype)
    gradients = torch.logspace(-6, 6, 400, dtype=dtype)
    optimizer = RMSprop.like(library, [w], lr=1.0, rho=0.9, centered=True, **way)
    steps = 400
    for _ in range(steps):
        w.grad = gradients.clone()
        optimizer.step()
    assert w.isfinite().all()
    bound = (torch.finfo(dtype).eps / (1 - 0.9)) ** -0.5  # of an update, in learning rates: the rounding floor
    assert w.abs().max() <= 1.01 * bound * steps


def test_torch_centred_does_end_in_nan():
    """The case is real."""
    w = torch.zeros(400)
    optimizer = torch.optim.RMSprop([w], alpha=0.9, centered=True)
    for _ in range(400):
        w.grad = torch.logspace(-6, 6, 400)
        optimizer.step()
    assert w.isnan().any()


def test_parameters_and_state_that_are_healthy_stay_silent(way):
    w = torch.ones(100)
    optimizer = RMSprop([w], **way)
    for scale in (1e-30, 1.0, 1e18, 0.0):
        w.grad = torch.full((100,), scale)
        optimizer.step()
    assert not int(optimizer.state[w].get("skipped", 0))
