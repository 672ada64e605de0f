"""The literal variant: small entries get a fixed size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unvanish.torch.reset import reset_vanished_gradients_


def with_grad(values, dtype=torch.float64):
    p = torch.zeros(len(values), dtype=dtype, requires_grad=True)
    p.grad = torch.tensor(values, dtype=dtype)
    return p


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(1e-9, 0.5), st.floats(1e-9, 1))
def test_against_a_loop(values, threshold, magnitude):
    p = with_grad(values)
    count = reset_vanished_gradients_([p], threshold, magnitude)
    small = [0 < abs(v) < threshold for v in values]
    assert count == sum(small)
    expected = [math.copysign(magnitude, v) if s else v for v, s in zip(values, small, strict=True)]
    assert p.grad.tolist() == expected


def test_zero_has_no_sign_and_nan_stays():
    p = with_grad([0.0, -0.0, math.nan, math.inf, 1e-300])
    assert reset_vanished_gradients_(p, 1e-3, 0.1) == 1
    assert p.grad[:2].tolist() == [0, 0]
    assert math.isnan(p.grad[2])
    assert p.grad[3:].tolist() == [math.inf, 0.1]


def test_none_duplicates_generators_and_sparse():
    p, none = with_grad([1e-9, 1.0]), torch.zeros(2, requires_grad=True)
    assert reset_vanished_gradients_((q for q in (p, none, p)), 1e-6, 0.5) == 1
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1, 1, 3])).mul(1e-9).sum().backward()
    assert reset_vanished_gradients_(table.parameters(), 1e-6, 0.5) == 4
    assert table.weight.grad.to_dense().tolist() == [[0, 0], [0.5, 0.5], [0, 0], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("threshold", "magnitude", "dtype"),
    [
        (0, 1, torch.float32),
        (1, -1, torch.float32),
        (math.nan, 1, torch.float32),
        (1, math.inf, torch.float32),
        ("a", 1, torch.float32),
        (1, None, torch.float32),
        (1, 1e-9, torch.float16),
        (1, 1e9, torch.float16),
        (1, 1, torch.complex64),
    ],
)
def test_wrong_settings_change_nothing(threshold, magnitude, dtype):
    good, p = with_grad([1e-9]), with_grad([1e-3], dtype)
    with pytest.raises(ValueError, match=r"\. .+\. .+\."):
        reset_vanished_gradients_([good, p], threshold, magnitude)
    assert good.grad.tolist() == [1e-9]


@pytest.mark.parametrize("wrong", [None, 3, torch.nn.Linear(1, 1), torch.nn.Linear(1, 1).parameters, ["a"]])
def test_things_that_are_no_parameters(wrong):
    with pytest.raises(ValueError, match=r"got a \w+\. It must be a parameter or several\. Give model\.parameters"):
        reset_vanished_gradients_(wrong, 1e-3, 0.1)


@pytest.mark.parametrize(
    ("gradient", "what"),
    [
        (torch.ones(1, device="meta"), "on the meta device"),
        (torch.full((1,), 1e-9).expand(2), "an expanded gradient"),
    ],
)
def test_gradients_that_cannot_be_written_change_nothing(gradient, what):
    good, p = with_grad([1e-9]), torch.zeros_like(gradient).requires_grad_()
    p.grad = gradient
    with pytest.raises(ValueError, match=rf"met .*{what}.*\. .+\. .+\."):
        reset_vanished_gradients_([good, p], 1e-3, 0.1)
    assert good.grad.tolist() == [1e-9]
