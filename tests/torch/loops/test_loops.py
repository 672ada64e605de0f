"""The compiled loops, against Python's own exact sums and comparisons."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unvanish.torch import loops

pytestmark = pytest.mark.skipif(not loops.compiled(), reason="Numba is not installed")
DTYPES = [torch.float32, torch.float64]


def check(tensors: list[Tensor], rel: float = 2e-6) -> None:
    looks = loops.look(tensors)
    sums = loops.square_sums(loops.addresses(tensors), loops.offsets(tensors), tensors[0].dtype)
    assert sums == looks.squares
    for tensor, square, smallest, largest in zip(tensors, *looks, strict=True):
        values = tensor.flatten().tolist()
        assert square == pytest.approx(math.fsum(v * v for v in values), rel=rel, abs=1e-320)
        assert smallest == min([0.0, *values])
        assert largest == max([0.0, *values])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=9), min_size=1, max_size=4),
    st.sampled_from(DTYPES),
)
def test_any_numbers(lists: list[list[float]], dtype: torch.dtype) -> None:
    check([torch.tensor(values, dtype=dtype) for values in lists])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e-19, 1e-13, 1.0, 1e15, 1e19, 1e38])
@pytest.mark.parametrize("count", [1, 2047, 2048, 2049, 10_000])
def test_any_size_and_length(dtype: torch.dtype, size: float, count: int) -> None:
    torch.manual_seed(0)
    wide = torch.randn(count, dtype=torch.float64).clamp(-3, 3) * size
    check([wide.to(dtype), torch.zeros(0, dtype=dtype), (-wide.abs()).to(dtype), torch.zeros(3, dtype=dtype)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_entries_beside_large_ones(dtype: torch.dtype) -> None:
    check([torch.logspace(-37, 3, 5000, dtype=torch.float64).to(dtype)])


def test_equal_numbers_lose_no_digits() -> None:
    check([torch.full((3_000_000,), 0.1)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 5000, 9999])
def test_what_is_not_finite_is_an_extreme(dtype: torch.dtype, bad: float, place: int) -> None:
    tensor = torch.ones(10_000, dtype=dtype)
    tensor[place] = bad
    looks = loops.look([torch.ones(3, dtype=dtype), tensor])
    assert looks.squares[0] == 3
    assert not math.isfinite(looks.squares[1])
    assert not (math.isfinite(looks.smallest[1]) and math.isfinite(looks.largest[1]))
    assert (looks.smallest[0], looks.largest[0]) == (0, 1)


def test_threads_share_the_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "WORTH_A_THREAD", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.manual_seed(0)
    tensors = [torch.randn(n) for n in (10, 5000, 1, 3000, 0)]
    assert len(loops.ranges(8011)) == 3
    check(tensors)


def test_a_numba_that_cannot_be_imported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs an older NumPy')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    with pytest.warns(RuntimeWarning, match="needs an older NumPy.* slower.* To mend it"):
        assert not loops.compiled.__wrapped__()
