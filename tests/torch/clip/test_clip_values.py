"""Bounds for single entries, against Python's min and max, and torch's and Keras' published tests."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from clip_oracle import Untouched, entries, norm_of, parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unvanish.torch.clip import clip_grad_value_
from unvanish.torch.clip.reading import IN_CACHE

pytestmark = pytest.mark.usefixtures("both_readings")
VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(VALUES, min_size=1, max_size=6), min_size=1, max_size=4),
    st.floats(0, 2.0**126, width=32),
    st.floats(0, 2.0**126, width=32),
)
def test_every_entry(lists: list[list[float]], below: float, above: float) -> None:
    if below == above == 0:
        return
    params = parameters(*(torch.tensor(values) for values in lists))
    watches = [Untouched([parameter]) for parameter in params]
    report = clip_grad_value_(params, above, minimum=-below)
    outside = [any(not -below <= v <= above for v in values) for values in lists]
    assert report.clipped == sum(outside)
    assert report.norm == pytest.approx(norm_of(*(torch.tensor(values) for values in lists)), rel=1e-5)
    for parameter, values, changed, watch in zip(params, lists, outside, watches, strict=True):
        assert parameter.grad.tolist() == [min(max(v, -below), above) for v in values]
        if not changed:
            watch.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bound", [0.1, 1e-46, 1e300, 7e4])
def test_bounds_that_the_dtype_rounds(dtype: torch.dtype, bound: float) -> None:
    """What was clipped once is not clipped again, and bounds beyond the dtype are no error."""
    params = parameters(torch.tensor([-3.0, 0.05, 3.0], dtype=dtype))
    clip_grad_value_(params, bound)
    watch = Untouched(params)
    assert clip_grad_value_(params, bound).clipped == 0
    watch.check()
    near = torch.tensor(min(bound, 3.0), dtype=torch.float64).to(dtype)
    assert params[0].grad[2] == near


@pytest.mark.parametrize("bound", [2.5, -2.5])
def test_torch_published_values(bound: float) -> None:
    """torch takes the magnitude of a negative value; here it is an error."""
    layer = nn.Linear(10, 10)
    first, second = torch.arange(-50.0, 50).view(10, 10).div(5), torch.ones(10).mul(2)
    layer.weight.grad, layer.bias.grad = first.clone(), second.clone()
    if bound < 0:
        with pytest.raises(ValueError, match="no range"):
            clip_grad_value_(layer.parameters(), bound)
        return
    clip_grad_value_(layer.parameters(), bound)
    assert torch.equal(layer.weight.grad, first.clamp(-bound, bound))
    assert torch.equal(layer.bias.grad, second)
    reference = nn.Linear(10, 10)
    reference.weight.grad = first.clone()
    nn.utils.clip_grad_value_(reference.parameters(), bound)
    assert torch.equal(reference.weight.grad, layer.weight.grad)


def test_keras_and_optax_published_values() -> None:
    params = parameters(torch.tensor([100.0, 100.0]), torch.tensor([[500.0, 5.0], [300.0, 3.0]]))
    clip_grad_value_(params, 1.0)
    assert entries(params[0].grad) == [1.0] * 2
    assert entries(params[1].grad) == [1.0] * 4


def test_one_sided_and_unbounded() -> None:
    params = parameters(torch.tensor([-5.0, 5.0]))
    clip_grad_value_(params, 1.0, minimum=-math.inf)
    assert params[0].grad.tolist() == [-5.0, 1.0]
    clip_grad_value_(params, math.inf, minimum=0.0)
    assert params[0].grad.tolist() == [0.0, 1.0]
    watch = Untouched(params)
    clip_grad_value_(params, math.inf)
    watch.check()


def test_complex_entries_part_by_part() -> None:
    params = parameters(torch.tensor([3 - 4j, 0.5 + 0.25j]))
    clip_grad_value_(params, 1.0, minimum=-2.0)
    assert params[0].grad.tolist() == [1 - 2j, 0.5 + 0.25j]


@pytest.mark.parametrize(
    ("low", "high"), [(None, 0.0), (0.0, 0.0), (0.1, 1.0), (-1.0, -0.1), (math.nan, 1.0), (None, math.nan), (1.0, -1.0)]
)
def test_senseless_ranges(low: float | None, high: float) -> None:
    params = parameters(torch.tensor([3.0]))
    watch = Untouched(params)
    with pytest.raises(ValueError, match=r"no range for gradients\. Expected"):
        clip_grad_value_(params, high, minimum=low)
    watch.check()


@pytest.mark.parametrize("bad", ["1", [1.0], 1j, torch.ones(2)])
def test_bounds_that_are_no_numbers(bad: Any) -> None:
    params = parameters(torch.tensor([3.0]))
    watch = Untouched(params)
    for low, high in ((None, bad), (bad, 1.0), (-1.0, None)):
        with pytest.raises(ValueError, match=r"no range for gradients\. Expected numbers .*\. Swap or widen them"):
            clip_grad_value_(params, high, minimum=low)
    watch.check()


class Operations(TorchDispatchMode):
    """What PyTorch was asked to compute: how many numbers of memory it read and wrote, without its views."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[str, int]] = []
        self.written: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(op)
        if not any(view in name for view in ("view", "split", "alias", "detach", "select", "slice")):
            given = [x for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, Tensor)]
            self.read.append((name, sum(x.numel() for x in given)))
            if any(
                argument.alias_info is not None and argument.alias_info.is_write for argument in op._schema.arguments
            ):
                self.written.append(name)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("shapes", [[(1_000_000,)], [(100, 100)] * 100, [(300_001,), (3, 5), (7,), (40_000,)]])
@pytest.mark.parametrize("times", [1.01, 100.0])
def test_a_quiet_call_reads_once_and_writes_nothing(
    both_readings: str, shapes: list[tuple[int, ...]], times: float
) -> None:
    """Once, as far as memory goes: what is looked at again is a piece that the cache holds."""
    torch.manual_seed(0)
    params = parameters(*(torch.randn(shape) for shape in shapes))
    top = max(float(p.grad.abs().max()) for p in params)
    total = sum(p.grad.numel() for p in params)
    with Operations() as operations:
        report = clip_grad_value_(params, times * top)
    assert report.clipped == 0
    assert not operations.written
    large = [(name, count) for name, count in operations.read if count > 1000]
    if both_readings == "numba":
        assert not large
        return
    assert all(count <= IN_CACHE for _, count in large)
    again = sum(count for name, count in operations.read if "cat" in name)  # side by side, for their extremes
    assert again <= total
    assert sum(count for _, count in operations.read) - again <= 1.02 * total + 1000  # norms; NumPy's look is not seen


def test_one_element_whose_sign_is_outstanding() -> None:
    params = parameters(torch.tensor([1 + 4j]).conj().imag, torch.tensor([1 - 4j]).conj().imag)
    clip_grad_value_(params, 3.0, minimum=-5.0)
    assert [p.grad.item() for p in params] == [-4.0, 3.0]


def test_gradients_that_only_stand_for_zeros() -> None:
    params = parameters(torch._efficientzerotensor(3), torch.tensor([4.0]))
    report = clip_grad_value_(params, 1.0)
    assert (report.norm, report.tensors, report.zero, report.clipped) == (4.0, 2, 1, 1)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-12, 1.0, 1e30])
def test_one_entry_outside_wherever_it_is(size: float) -> None:
    """In pieces whose norm is below the bound, above it, or beyond what float32 can square."""
    for place in (0, IN_CACHE - 1, IN_CACHE, 3 * IN_CACHE - 1):
        grad = torch.zeros(3 * IN_CACHE)
        grad[place] = -3 * size
        params = parameters(grad, torch.full((5,), size))
        assert clip_grad_value_(params, 2 * size).clipped == 1
        assert params[0].grad[place] == torch.tensor(-2 * size)
        assert clip_grad_value_(params, 2 * size).clipped == 0


def test_under_the_compiler() -> None:
    """Warnings are errors here."""
    params = parameters(torch.tensor([-3.0, 0.5]), torch.full((50_000,), 2.0))
    report = torch.compile(lambda: clip_grad_value_(params, 1.0), backend="eager")()
    assert (report.tensors, report.clipped) == (2, 2)
    assert params[0].grad.tolist() == [-1.0, 0.5]
