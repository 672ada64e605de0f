"""Norms and moments of any tensor, against float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unvanish.torch.probe.moments import MomentQueue, batch_axis, moments
from unvanish.torch.probe.norms import Norms, dense, norms, scaled_norm

pytestmark = pytest.mark.usefixtures("both_readings")

SHAPES = st.sampled_from([(1,), (7,), (3, 5), (4, 1, 6), (2, 3, 4, 5), (64, 33)])
SCALES = st.integers(-44, 37)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def exact(tensor: Tensor) -> float:
    """L2 norm in float64 with the largest element divided out."""
    array = tensor.to(torch.float64).numpy().ravel()
    largest = np.abs(array).max(initial=0.0)
    return 0.0 if largest == 0 else float(largest * np.sqrt(((array / largest) ** 2).sum()))


def scaled(shape: tuple[int, ...], exponent: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0**exponent).to(dtype)


@settings(max_examples=150, deadline=None)
@given(SHAPES, SCALES, DTYPES, st.integers(0, 1000))
def test_norms_from_the_smallest_to_the_largest_float(
    shape: tuple[int, ...], exponent: int, dtype: torch.dtype, seed: int
) -> None:
    tensor = scaled(shape, exponent, dtype, seed)
    if not torch.isfinite(tensor).all():
        return
    expected = exact(tensor)
    assert norms([tensor])[0] == pytest.approx(expected, rel=1e-5, abs=0)
    assert scaled_norm(tensor) == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("exponent", [-300, -160, -150, 149, 155, 300])
def test_float64_beyond_its_squares(exponent: int) -> None:
    tensor = torch.tensor([3.0, 4.0], dtype=torch.float64) * 10.0**exponent
    assert norms([tensor])[0] == pytest.approx(5 * 10.0**exponent, rel=1e-12)


def test_a_queue_keeps_its_slots_apart() -> None:
    queue = Norms()
    tensors = [scaled((4, 3), e, d, e + 50) for e in range(-44, 37, 3) for d in (torch.float32, torch.float64)] * 6
    slots = [queue.slot() for _ in tensors]
    empty = queue.slot()
    for slot, tensor in zip(slots, tensors, strict=True):
        queue.put(slot, tensor)
    for slot, tensor in zip(slots, tensors, strict=True):
        assert queue.norm(slot) == pytest.approx(exact(tensor), rel=1e-5, abs=0)
    assert queue.norm(empty) is None
    assert queue.log(empty) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.0], -math.inf), ([math.inf, 1.0], math.inf), ([math.nan, 1.0], math.nan), ([3.0, 4.0], math.log(5))],
)
def test_logarithms_keep_zero_infinity_and_nan_apart(values: list[float], expected: float) -> None:
    queue = Norms()
    slot = queue.slot()
    queue.put(slot, torch.tensor(values))
    assert queue.log(slot) == pytest.approx(expected, nan_ok=True)


def test_mixed_finite_and_not_in_one_queue() -> None:
    parts = [torch.tensor([math.nan]), torch.tensor([3e-40, 4e-40]), torch.tensor([math.inf]), torch.tensor([3.0, 4.0])]
    measured = norms(parts)
    assert math.isnan(measured[0])
    assert measured[1] == pytest.approx(5e-40, rel=1e-4)
    assert measured[2:] == [math.inf, 5.0]


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_sparse_and_complex_tensors_are_unfolded() -> None:
    full = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    for tensor in (full.to_sparse(), full.to_sparse_csr(), torch.complex(full, torch.zeros(2, 2)).conj()):
        assert norms([dense(tensor)])[0] == pytest.approx(5.0)
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.tensor([1.0, 2.0]), (3,), check_invariants=True)
    assert norms([dense(twice)])[0] == pytest.approx(3.0)


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.integers(-30, 30), DTYPES, st.integers(0, 1000), st.sampled_from([0.0, 1.0, 100.0]))
def test_moments_against_numpy(
    shape: tuple[int, ...], exponent: int, dtype: torch.dtype, seed: int, offset: float
) -> None:
    tensor = scaled(shape, 0, torch.float64, seed).add(offset).mul(10.0**exponent).to(dtype)
    if not torch.isfinite(tensor).all():
        return
    array = tensor.to(torch.float64).numpy()
    found = moments(tensor, shape[0])
    size = float(np.sqrt(((array / max(np.abs(array).max(), 1e-300)) ** 2).mean())) * float(np.abs(array).max())
    assert found.count == array.size
    assert found.nonfinite == 0
    assert found.rms == pytest.approx(size, rel=1e-5, abs=0)
    assert found.mean == pytest.approx(float(array.mean()), abs=1e-5 * size)
    assert found.max_abs == pytest.approx(float(np.abs(array).max()), rel=1e-6)
    if shape[0] > 1:
        largest = np.abs(array).max() or 1.0
        expected = float(np.sqrt((array / largest).var(axis=0).mean()) * largest)
        assert found.batch_std == pytest.approx(expected, rel=1e-4, abs=1e-9 * size)
        assert found.separation == pytest.approx(expected / size if size else 0.0, rel=1e-4, abs=1e-9)
    else:
        assert found.batch_std is None
        assert found.separation is None


def test_separation_of_samples_that_are_nearly_alike() -> None:
    base = torch.randn(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tensor = (base + 1e-4 * noise).float()
    array = tensor.double().numpy()
    expected = float(np.sqrt(array.var(axis=0).mean()) / np.sqrt((array**2).mean()))
    assert moments(tensor, 64).separation == pytest.approx(expected, rel=1e-4)
    assert moments(tensor[:1].expand(64, 50), 64).separation == 0.0


def test_one_sample_unlike_all_others() -> None:
    """The reference sample is the outlier: the worst case of the shifted sum of squares."""
    tensor = torch.randn(256, 40, generator=torch.Generator().manual_seed(0))
    tensor[0] += 1e4
    array = tensor.double().numpy()
    assert moments(tensor, 256).batch_std == pytest.approx(float(np.sqrt(array.var(axis=0).mean())), rel=1e-3)


def test_queue_measures_what_was_there_and_not_what_came_later() -> None:
    queue = MomentQueue(4)
    tensors = [torch.full((4, 5), float(i)) for i in range(300)]
    for i, tensor in enumerate(tensors):
        queue.add(i, tensor)
        tensor.zero_()
    found = queue.finish()
    assert [found[i].mean for i in range(300)] == pytest.approx([float(i) for i in range(300)])


def test_queue_of_many_shapes_and_dtypes() -> None:
    queue = MomentQueue(6)
    tensors = {
        i: scaled((6, width), exponent, dtype, i)
        for i, (width, exponent, dtype) in enumerate(
            (w, e, d)
            for w in (1, 3, 5000)
            for e in (-30, -3, 2)
            for d in (torch.float32, torch.float64, torch.bfloat16)
        )
    }
    for key, tensor in tensors.items():
        queue.add(key, tensor)
    found = queue.finish()
    for key, tensor in tensors.items():
        array = tensor.double().numpy()
        largest = np.abs(array).max() or 1.0
        assert found[key].rms == pytest.approx(float(np.sqrt(((array / largest) ** 2).mean()) * largest), rel=1e-4)


def test_values_that_are_not_finite_are_counted() -> None:
    found = moments(torch.tensor([[1.0, math.nan], [math.inf, 2.0]]), 2)
    assert found.nonfinite == 2
    assert math.isnan(found.rms)
    assert found.separation is None


@pytest.mark.parametrize(
    ("shape", "batch", "axis"),
    [((8, 3), 8, 0), ((16, 3), 8, 0), ((5, 8, 3), 8, 1), ((5, 8), 8, None), ((), 8, None), ((8, 3), 1, None)],
)
def test_the_axis_of_samples(shape: tuple[int, ...], batch: int, axis: int | None) -> None:
    assert batch_axis(shape, batch) == axis


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_gradients_among_tiny_ones(dtype: torch.dtype) -> None:
    """Exactly zero is told from what float32 squares to zero, whatever was measured before."""
    queue = Norms()
    smallest = float(torch.finfo(dtype).smallest_normal) / 8
    values = [1.0, 0.0, smallest, 0.0, 0.0, 1e-3, smallest, 0.0] * 40
    tensors = [torch.zeros(6, 5, dtype=dtype).index_fill_(0, torch.tensor([2]), value) for value in values]
    slots = [queue.add(tensor) for tensor in tensors]
    for slot, tensor in zip(slots, tensors, strict=True):
        assert queue.norm(slot) == pytest.approx(exact(tensor), rel=1e-5, abs=0)


@pytest.mark.parametrize("gap", [0.0, 1e-5, 1e-12, 1e-18, 1e-24, 1e-30, 1e-38])
def test_small_differences_between_samples_of_a_stack(gap: float) -> None:
    """What still differs may be any factor below what is equal, and the neighbours in the queue differ a lot."""
    generator = torch.Generator().manual_seed(0)
    queue, tensors = MomentQueue(16), []
    for i in range(40):
        shared = torch.randn(1, 30, generator=generator) * (torch.arange(30) < 20)  # features 20.. hold the gap alone
        noise = torch.randn(16, 30, generator=generator) * (torch.arange(30) >= 20)
        tensors.append(torch.randn(16, 30, generator=generator) if i % 3 == 0 else shared + gap * noise)
        queue.add(i, tensors[-1])
    found = queue.finish()
    for i, tensor in enumerate(tensors):
        array = tensor.double().numpy() / (1.0 if i % 3 == 0 or gap == 0 else gap)
        expected = float(np.sqrt(array[:, 20:].var(axis=0).sum() / 30) if i % 3 else np.sqrt(array.var(axis=0).mean()))
        scale = 1.0 if i % 3 == 0 or gap == 0 else gap
        assert found[i].batch_std == pytest.approx(expected * scale, rel=1e-3, abs=0)
