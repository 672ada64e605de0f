"""Clipping inside of the step is clipping before it; the gradients are not touched."""

from __future__ import annotations

import math

import pytest
import torch

from unvanish.torch.rmsprop import RMSprop


def gradients(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 4), (5,), (70000,))]


@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"weight_decay": 0.1, "decoupled_weight_decay": False}])
def test_equals_exact_clipping_before_the_step(way, clip, settings):
    ours, theirs = ([torch.ones_like(g) for g in gradients()] for _ in range(2))
    optimizer = RMSprop(ours, clip=clip, **settings, **way)
    reference = RMSprop(theirs, **settings, **way)
    for t in range(3):
        grads = [g * 10.0**-t for g in gradients()]
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        for p, q, g in zip(ours, theirs, grads, strict=True):
            p.grad, q.grad = g.clone(), g * min(1.0, clip / norm)
        optimizer.step()
        reference.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(ours, grads, strict=True))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e15, 1e30])
def test_the_norm_is_right_where_squares_leave_float32(way, scale):
    """g = scale (3, 4): the norm is 5 scale; clipped to scale, g is (0.6, 0.8) scale."""
    ours, theirs = torch.zeros(2), torch.zeros(2)
    settings = {"eps": 1e-30, "eps_inside": False, "rho": 0.0, "lr": 1.0}  # the update is g / (|g| + 1e-30)
    optimizer = RMSprop([ours], clip=scale, momentum=0.5, **settings, **way)
    reference = RMSprop([theirs], momentum=0.5, **settings, **way)
    ours.grad, theirs.grad = torch.tensor([3.0, 4.0]) * scale, torch.tensor([0.6, 0.8]) * scale
    optimizer.step()
    reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


def test_zero_gradients_and_the_exact_norm_are_left_alone(way):
    w = torch.zeros(2)
    optimizer = RMSprop([w], lr=1.0, clip=1.0, **way)
    w.grad = torch.zeros(2)
    optimizer.step()
    assert w.tolist() == [0.0, 0.0]
    plain = torch.zeros(2)
    w.grad, plain.grad = torch.tensor([0.6, 0.8]), torch.tensor([0.6, 0.8])
    optimizer.step()
    reference = RMSprop([plain], lr=1.0, **way)
    plain.grad.zero_()
    reference.step()
    plain.grad = torch.tensor([0.6, 0.8])
    reference.step()
    torch.testing.assert_close(w, plain, rtol=1e-6, atol=0)


def test_one_norm_over_the_groups_that_have_a_clip():
    a, b, c = (torch.zeros(1, dtype=torch.float64) for _ in range(3))
    groups = [{"params": [a], "clip": 1.0}, {"params": [b], "clip": 2.5}, {"params": [c], "clip": None}]
    optimizer = RMSprop(groups, lr=1.0, rho=0.0, eps=1.0)  # moves by g / sqrt(g^2 + 1)
    a.grad, b.grad, c.grad = (torch.full((1,), x, dtype=torch.float64) for x in (3.0, 4.0, 100.0))
    optimizer.step()
    for w, g in ((a, 3 / 5), (b, 2.0), (c, 100.0)):
        assert w.item() == pytest.approx(-g / math.sqrt(g * g + 1), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_entry_is_not_in_the_norm(way, bad):
    w = torch.zeros(3, dtype=torch.float64)
    optimizer = RMSprop([w], lr=1.0, rho=0.0, eps=1.0, clip=1.0, **way)
    w.grad = torch.tensor([3.0, bad, 4.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match="NaN or Inf"):
        optimizer.step()
    assert w.tolist() == pytest.approx([-0.6 / math.sqrt(1.36), 0.0, -0.8 / math.sqrt(1.64)], rel=1e-12)


def test_the_norm_of_many_equal_numbers_loses_no_digits(way):
    """One float32 sum of squares of as many makes the norm 0.2 % wrong."""
    count = 4_000_000
    w, g = torch.zeros(count), torch.tensor(0.1).expand(count).clone()
    w.grad = g
    RMSprop([w], lr=1.0, clip=1.0, rho=0.0, eps=1.0, eps_inside=False, **way).step()
    clipped = 1 / math.sqrt(count)  # each of them, and the step is g / (|g| + 1)
    assert -w[0].item() == pytest.approx(clipped / (1 + clipped), rel=1e-5)


@pytest.mark.parametrize("size", [1e20, 1e30, 1e38])
def test_huge_gradients_are_clipped_before_they_are_limited(way, size):
    """Their share of the clipped norm is what counts: both are beyond 2^63 before, and neither is after."""
    w = torch.zeros(2)
    w.grad = torch.tensor([size, size / 4])
    RMSprop([w], lr=1.0, rho=0.5, eps=1e-4, clip=1.0, **way).step()
    g = torch.tensor([4.0, 1.0], dtype=torch.float64) / math.sqrt(17)
    torch.testing.assert_close(w.double(), -g / (g.square() / 2 + 1e-4).sqrt(), rtol=1e-5, atol=0)
