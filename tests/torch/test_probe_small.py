"""Small tensors read by compiled loops, against float64 NumPy and PyTorch's own derivatives."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from unvanish.torch import loops
from unvanish.torch.probe import small

pytestmark = [
    pytest.mark.skipif(not loops.compiled(), reason="Numba is not installed"),
    pytest.mark.usefixtures("loaded"),
]

Array = NDArray[np.float64]
SHAPES = st.sampled_from([(2,), (9,), (3, 1), (5, 7), (64, 33), (4, 3, 6), (2, 5, 3, 4), (127, 509), (256, 256)])
OPS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}


@pytest.fixture(scope="module")
def loaded() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "PRICE", 0)
        yield


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(array: Array, axis: int) -> float:
    """Root mean square over features of the standard deviation over the samples; they may nearly equal one another."""
    shifted = array - np.take(array, [0], axis)
    return float(np.sqrt(((shifted - shifted.mean(axis=axis, keepdims=True)) ** 2).mean()))


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.integers(-44, 37), st.integers(0, 1000), st.sampled_from([0.0, 1.0, 1e4]), st.integers(-1, 1))
def test_moments(shape: tuple[int, ...], exponent: int, seed: int, offset: float, axis: int) -> None:
    tensor = (drawn(shape, seed) + offset).mul(10.0 ** (exponent - 4)).float()
    over = axis if 0 <= axis < len(shape) else None
    assert small.fits(tensor)
    found, array = small.moments(tensor, over), tensor.double().numpy()
    assert found.count == array.size
    assert found.rms == pytest.approx(float(np.sqrt((array**2).mean())), rel=1e-12, abs=0)
    assert found.mean == pytest.approx(float(array.mean()), abs=1e-12 * found.rms)
    if over is None:
        assert found.batch_std is None
    else:
        assert found.batch_std == pytest.approx(spread(array, over), rel=1e-9, abs=1e-15 * found.rms)


@pytest.mark.parametrize("gap", [0.0, 1e-7, 1e-20, 1e-38])
def test_samples_that_nearly_equal_one_another(gap: float) -> None:
    tensor = torch.cat([drawn((1, 20), 0).expand(50, 20), gap * drawn((50, 4), 1)], dim=1).float()
    assert small.moments(tensor, 0).batch_std == pytest.approx(spread(tensor.double().numpy(), 0), rel=1e-9, abs=0)


@pytest.mark.parametrize("far", [1e4, 1e12, 1e30])
def test_a_first_sample_that_stands_far_out(far: float) -> None:
    """Its feature alone hides what the others differ by; in the other features nothing may be lost."""
    tensor = drawn((256, 8), 0).float()
    tensor[0, :4] = far
    expected = float(np.sqrt(tensor.double().numpy().var(axis=0).mean()))
    assert small.moments(tensor, 0).batch_std == pytest.approx(expected, rel=1e-6)


def test_what_is_not_finite_is_counted() -> None:
    found = small.moments(torch.tensor([[1.0, math.nan], [math.inf, 2.0], [-math.inf, 0.0]]), 0)
    assert (found.nonfinite, found.batch_std, found.max_abs) == (3, None, math.inf)
    assert math.isnan(found.rms)
    assert math.isnan(found.mean)


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.lists(st.integers(-45, 38), min_size=1, max_size=5), st.integers(0, 1000))
def test_norms(shape: tuple[int, ...], exponents: list[int], seed: int) -> None:
    tensors = [drawn(shape, seed + i).clamp(-3, 3).mul(10.0**e).float() for i, e in enumerate(exponents)]
    tensors.append(torch.tensor(-3.0))  # one call, whatever their shapes
    expected = [float(np.linalg.norm(tensor.double().numpy())) for tensor in tensors]
    assert small.norms(tensors) == pytest.approx(expected, rel=1e-12, abs=0, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.sampled_from([*OPS, ""]), st.integers(0, 1000), st.integers(0, 3), st.sampled_from([0.1, 1.0, 10.0]))
def test_slopes_against_autograd(shape: tuple[int, ...], op: str, seed: int, axis: int, size: float) -> None:
    axis %= len(shape)
    inputs = [drawn(shape, seed + i).mul(size).float() for i in range(3)]
    for x in inputs:
        x.transpose(0, axis)[0] -= 30 * size  # one unit that is dead, or saturated, on all samples
    if op:
        values = [OPS[op](x) for x in inputs]
        slopes = [torch.autograd.functional.jvp(OPS[op], x, torch.ones_like(x))[1] for x in inputs]
    else:
        values, slopes = inputs, [x.abs() for x in inputs]
    if op:
        samples = seed % len(shape)
        moments, peaks, shares = small.outputs(op, values, samples, axis, 0.05, 1e-6)
        assert moments == [small.moments(value, samples) for value in values]
    else:
        peaks, shares = small.slopes(values, axis, 0.05, 1e-6)
    rest = [d for d in range(len(shape)) if d != axis]
    for row, slope in enumerate(slopes):
        highest = slope.amax(dim=rest) if rest else slope
        torch.testing.assert_close(peaks[row], highest, rtol=1e-6, atol=1e-7)
        low, dead = shares[row]
        assert dead == pytest.approx(float((highest <= 1e-6).float().mean()))
        unsure = int(((slope - 0.05).abs() < 1e-6).sum())  # rounding decides
        assert abs(low * slope.numel() - int((slope < 0.05).sum())) <= unsure + 1e-6


@pytest.mark.parametrize("op", [*OPS, ""])
def test_a_derivative_that_is_not_a_number_is_not_zero(op: str) -> None:
    values = torch.full((4, 5, 3), 1.0 if op in ("tanh", "sigmoid") else 0.0)  # all are dead
    values[2, 3, 1] = math.nan
    both = [values, values.nan_to_num(1.0)]
    *_, peaks, shares = small.outputs(op, both, 0, 1, 0.05, 1e-6) if op else small.slopes(both, 1, 0.05, 1e-6)
    assert peaks[0].isnan().tolist() == [False, False, False, True, False]
    assert not peaks[1].isnan().any()
    assert shares[0][1] == pytest.approx(0.8)


def test_only_what_lies_in_one_small_piece_of_float32_is_read() -> None:
    x = torch.randn(8, 6)
    refused = (
        x.double(),
        x.half(),
        x.t(),
        x.to_sparse(),
        x[:, ::2],
        x[:1].expand(8, 6),
        torch.randn(small.LARGEST + 1),
        x[:0],
    )
    assert small.fits(x)
    assert not any(map(small.fits, (*refused, x.to("meta"))))
    assert small.fit([x, x])
    for other in (torch.randn(6, 8).t(), x.to_sparse(), x.to("meta"), nn.Parameter(x), None):
        assert not small.fit([x, other])


def test_loops_are_loaded_when_calls_have_cost_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "PRICE", next(small._met) + 4)
    x = torch.randn(8, 6)
    assert [small.fits(x) for _ in range(5)] == [False, False, False, True, True]
