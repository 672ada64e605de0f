"""Bounds for norms, against exact fractions, torch's own clipping and its published tests, and optax' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from clip_oracle import Untouched, entries, near, norm_of, parameters, scaled
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unvanish.torch.clip import ClipReport, clip_grad_global_norm_, clip_grad_tensor_norm_
from unvanish.torch.clip.by_norm import common_factor
from unvanish.torch.clip.norms import exact_norm, fast_norms, is_safe

pytestmark = pytest.mark.usefixtures("both_readings")
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
SHAPES = st.sampled_from([(1,), (7,), (3, 5), (4, 1, 6), (2, 3, 2, 2), ()])


@st.composite
def gradients(draw: st.DrawFn) -> list[Tensor]:
    """Up to four gradients, each with its own size from 1e-44 to 1e38, shape and dtype; some exactly zero."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
        dtype, exponent = draw(DTYPES), draw(st.floats(-44, 37.5))
        most = torch.finfo(dtype).max / 8
        wide = torch.randn(draw(SHAPES), generator=generator, dtype=torch.float64) * 10.0**exponent
        made.append((wide.clamp(-most, most) * draw(st.sampled_from([1, 1, 1, 0]))).to(dtype))
    return made


BOUNDS = st.floats(-44, 38).map(lambda exponent: 10.0**exponent)


def mixed_rounding(grads: list[Tensor], grad: Tensor) -> float | None:
    """The common norm is as exact as the coarsest of the wide gradients."""
    mixed = grad.dtype == torch.float64 and any(g.dtype != torch.float64 for g in grads)
    return 2e-6 if mixed else None


@settings(max_examples=300, deadline=None)
@given(gradients(), BOUNDS)
def test_global_norm_from_1e_44_to_1e38(grads: list[Tensor], maximum: float) -> None:
    before = [grad.clone() for grad in grads]
    params = parameters(*grads)
    watch = Untouched(params)
    report = clip_grad_global_norm_(params, maximum)
    size = norm_of(*before)
    assert report.norm == pytest.approx(size, rel=2e-6, abs=0)
    assert report.zero == sum(norm_of(grad) == 0 for grad in before)
    if size <= maximum * (1 - 1e-5):
        watch.check()
        assert report.clipped == 0
    elif size > maximum * (1 + (1e-2 if any(grad.dtype.itemsize == 2 for grad in grads) else 5e-5)):
        assert report.clipped == len(grads) - report.zero
        for parameter, grad in zip(params, before, strict=True):
            near(parameter.grad, scaled(entries(grad), maximum, size), mixed_rounding(before, parameter.grad))


@settings(max_examples=300, deadline=None)
@given(gradients(), BOUNDS, st.floats(0, 1))
def test_tensor_norms_from_1e_44_to_1e38(grads: list[Tensor], maximum: float, below: float) -> None:
    floor = min(maximum * 10 ** (-60 * below), 1e4) if below < 0.9 else 0.0  # float16 must hold it
    before = [grad.clone() for grad in grads]
    params = parameters(*grads)
    report = clip_grad_tensor_norm_(params, maximum, floor=floor)
    sizes = [norm_of(grad) for grad in before]
    close = [any(b and abs(s / b - 1) < 1e-5 for b in (floor, maximum)) for s in sizes]
    if not any(close):
        assert report.clipped == sum(size > maximum for size in sizes)
        assert report.raised == sum(0 < size < floor for size in sizes)
    for parameter, grad, size in zip(params, before, sizes, strict=True):
        wanted = min(max(size, floor), maximum)
        near(parameter.grad, scaled(entries(grad), wanted, size) if size else entries(grad))


def quiet(params: list[Tensor], maximum: float, floor: float, clip: Callable[..., ClipReport]) -> None:
    """What was clipped once is neither counted nor written again: rounding leaves half of all norms above the bound."""
    first = clip(params, maximum, floor=floor)
    watch = Untouched(params)
    again = clip(params, maximum, floor=floor)
    watch.check()
    assert (again.clipped, again.raised) == (0, 0), (first, again)


@settings(max_examples=300, deadline=None)
@given(gradients(), BOUNDS, st.floats(0, 1), st.sampled_from([clip_grad_global_norm_, clip_grad_tensor_norm_]))
def test_clipping_twice_is_clipping_once(
    grads: list[Tensor], maximum: float, below: float, clip: Callable[..., ClipReport]
) -> None:
    floor = min(0.49 * maximum * 10 ** (-60 * below), 1e4) if below < 0.5 else 0.0
    quiet(parameters(*grads), maximum, floor, clip)


@pytest.mark.parametrize("clip", [clip_grad_global_norm_, clip_grad_tensor_norm_])
@pytest.mark.parametrize("floor", [0.0, 0.03])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_clipping_random_sets_twice(clip: Callable[..., ClipReport], floor: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        sizes = torch.rand(5, generator=generator) * 0.2
        grads = [(torch.randn(37, generator=generator) * size).to(dtype) for size in sizes.tolist()]
        quiet(parameters(*grads), 0.1, floor, clip)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 100, 16384, 16385, 300_000])
def test_clipping_equal_numbers_twice(dtype: torch.dtype, size: int) -> None:
    """They are all rounded to the same side."""
    for value in torch.linspace(0.2, 2, 13).tolist():
        quiet(parameters(torch.full((size,), value, dtype=dtype)), 0.1, 0.0, clip_grad_global_norm_)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_norm_above_the_bound_by_more_than_rounding_is_clipped(dtype: torch.dtype) -> None:
    grad = torch.tensor([3.0, 4.0], dtype=dtype) * (1 + 4 * max(torch.finfo(dtype).eps, 1e-5))
    for clip in (clip_grad_global_norm_, clip_grad_tensor_norm_):
        (parameter,) = params = parameters(grad.clone())
        assert clip(params, 5.0).clipped == 1
        assert norm_of(parameter.grad) == pytest.approx(5.0, rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize("exponent", [-320, -300, -160, -100, 100, 155, 300, 307])
def test_float64_beyond_the_squares(exponent: int) -> None:
    grad = torch.tensor([3.0, 4.0], dtype=torch.float64) * 10.0**exponent
    (parameter,) = params = parameters(grad.clone())
    report = clip_grad_global_norm_(params, 10.0**-5)
    assert report.norm == pytest.approx(norm_of(grad), rel=1e-12, abs=0)
    near(parameter.grad, scaled(entries(grad), min(1e-5, report.norm), norm_of(grad)), rel=1e-12)
    clip_grad_tensor_norm_(params, floor=1e300)
    assert norm_of(parameter.grad) == pytest.approx(1e300, rel=1e-12 if exponent > -310 else 1e-2)


@pytest.mark.parametrize("value", [0.1, 1e-3, 0.3])
def test_the_norm_of_many_equal_numbers_loses_no_digits(value: float) -> None:
    """torch's float32 norm of 50 million numbers 0.1 is 3 % too large."""
    (parameter,) = params = parameters(torch.full((3_000_001,), value))
    exact = float(parameter.grad[0]) * math.sqrt(3_000_001)
    assert clip_grad_global_norm_(params).norm == pytest.approx(exact, rel=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(16384,), (16385,), (100, 1024), (70_001,), (64, 32, 9, 9)])
def test_norms_of_long_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = torch.randn(shape).to(dtype)
    last = plain.to(memory_format=torch.channels_last) if plain.ndim == 4 else plain.repeat(2, *[1] * plain.ndim)[1]
    gapped = torch.stack([plain, plain], dim=-1)[..., 0]
    wanted = float(torch.linalg.vector_norm(plain.double()))
    for tensor in (plain, last, gapped):
        assert fast_norms([tensor, plain[:1]])[0] == pytest.approx(wanted, rel=5e-6)
        assert exact_norm(tensor) == pytest.approx(wanted, rel=1e-6 if dtype != torch.float64 else 1e-12)


def test_neither_zero_nor_infinity_nor_nan_is_a_safe_norm() -> None:
    for norm in (0.0, math.inf, math.nan, 1e-20, 1e19):
        assert not is_safe(norm, torch.float32)
    assert is_safe(1e-20, torch.float64)
    assert is_safe(1.0, torch.bfloat16)


# torch's own tests of clip_grad_norm_ (test/test_nn.py), as numbers: a 10 x 10 layer, bias included


@pytest.mark.parametrize("maximum", [0.5, 1.5, 2.0, 4.0, math.inf])
@pytest.mark.parametrize("fill", ["increasing", "ones"])
def test_torch_published_global_norm(maximum: float, fill: str) -> None:
    layer = nn.Linear(10, 10)
    first = torch.arange(1.0, 101).view(10, 10) if fill == "increasing" else torch.ones(10, 10)
    second = torch.ones(10).div(1000)
    layer.weight.grad, layer.bias.grad = first.clone(), second.clone()
    report = clip_grad_global_norm_(layer.parameters(), maximum)
    before, after = norm_of(first, second), norm_of(layer.weight.grad, layer.bias.grad)
    assert report.norm == pytest.approx(before, rel=1e-6)
    assert after == pytest.approx(min(before, maximum), rel=1e-6)
    ratios = torch.cat([(layer.weight.grad / first).flatten(), layer.bias.grad / second])
    assert float(ratios.std()) < 1e-6
    assert float(ratios[0]) <= 1


@pytest.mark.parametrize("maximum", [1e-3, 0.5, 1.0, 3.0, 1e3])
def test_equal_to_torch_where_torch_is_right(maximum: float) -> None:
    torch.manual_seed(1)
    grads = [torch.randn(13, 7), torch.randn(5), torch.randn(2, 3, 4)]
    ours, theirs = parameters(*(g.clone() for g in grads)), parameters(*(g.clone() for g in grads))
    norm = nn.utils.clip_grad_norm_(theirs, maximum)
    assert clip_grad_global_norm_(ours, maximum).norm == pytest.approx(float(norm), rel=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-6, atol=1e-9)


def test_optax_published_global_norm() -> None:
    """Clipped to 1/i for i = 1..50: the norm is 1/i, and clipping again changes it in no sixth place."""
    params = parameters(torch.tensor([500.0, 5.0]), torch.tensor([300.0, 3.0]))
    for i in range(1, 51):
        clip_grad_global_norm_(params, 1 / i)
        once = [parameter.grad.clone() for parameter in params]
        assert norm_of(*once) == pytest.approx(1 / i, abs=1e-6)
        clip_grad_global_norm_(params, 1 / i)
        assert all(torch.allclose(p.grad, g, rtol=1e-6) for p, g in zip(params, once, strict=True))


def test_keras_published_norms() -> None:
    (parameter,) = params = parameters(torch.tensor([100.0, 100.0]))
    clip_grad_tensor_norm_(params, 1.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.70710678] * 2))
    (parameter,) = params = parameters(torch.tensor([50.0, 100.0]))
    clip_grad_global_norm_(params, 1.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([50.0, 100.0]) / 12500**0.5)


# what goes wrong elsewhere, measured


@pytest.mark.parametrize(
    ("grad", "maximum", "wanted"),
    [
        ([3.0, 4.0], 1.0, [0.6, 0.8]),  # torch: 0.5999999, 0.7999998
        ([6e-9, 8e-9], 1e-9, [6e-10, 8e-10]),  # torch: norm 9.9e-12, a hundred times too small
        ([3e-30, 4e-30], 1e-30, [6e-31, 8e-31]),  # torch: norm 0, nothing clipped
        ([3e20, 4e20], 1.0, [0.6, 0.8]),  # torch: norm inf, every gradient of the network becomes 0
        ([3e38, 1e38], 1e-6, [9.486833e-07, 3.1622777e-07]),  # the ratio is below float32
    ],
)
def test_norms_torch_gets_wrong(grad: list[float], maximum: float, wanted: list[float]) -> None:
    for clip in (clip_grad_global_norm_, clip_grad_tensor_norm_):
        (parameter,) = params = parameters(torch.tensor(grad))
        clip(params, maximum)
        torch.testing.assert_close(parameter.grad, torch.tensor(wanted), rtol=3e-7, atol=0)


@pytest.mark.parametrize("clip", [clip_grad_global_norm_, clip_grad_tensor_norm_])
def test_a_norm_equal_to_the_bound_is_not_touched(clip: object) -> None:
    params = parameters(torch.tensor([3.0, 4.0]))
    watch = Untouched(params)
    assert clip(params, 5.0, floor=5.0).clipped == 0  # type: ignore[operator]
    watch.check()


def test_half_precision_norms_do_not_overflow() -> None:
    """torch computes them in float16: 65,504 and more become inf, and all gradients 0."""
    half, single = torch.full((4,), 4e4, dtype=torch.float16), torch.ones(4)
    params = parameters(half, single)
    report = clip_grad_global_norm_(params, 1e3)
    assert report.norm == pytest.approx(math.hypot(8e4, 2), rel=1e-6)
    near(params[0].grad, [500.0] * 4, rel=1e-3)
    near(params[1].grad, [1e3 / report.norm] * 4)


def test_bfloat16_norms_are_not_rounded_to_bfloat16() -> None:
    grad = torch.full((1000,), 0.1).bfloat16()
    exact = float(grad[0]) * math.sqrt(1000)
    assert clip_grad_global_norm_(parameters(grad)).norm == pytest.approx(exact, rel=1e-6)


# floor


def test_floor_raises_without_turning() -> None:
    torch.manual_seed(2)
    grad = torch.randn(50) * 1e-42  # subnormal
    (parameter,) = params = parameters(grad.clone())
    assert clip_grad_tensor_norm_(params, floor=1e-3).raised == 1
    assert norm_of(parameter.grad) == pytest.approx(1e-3, rel=1e-6)
    cosine = torch.dot(grad.double(), parameter.grad.double()) / (norm_of(grad) * norm_of(parameter.grad))
    assert float(cosine) == pytest.approx(1, abs=1e-12)


def test_floor_rescues_the_first_layers_of_a_deep_sigmoid_network() -> None:
    torch.manual_seed(0)
    depth = 40
    layers = [module for _ in range(depth) for module in (nn.Linear(8, 8), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(8, 1))
    exact = nn.Sequential(*(type(m)(8, 8) if isinstance(m, nn.Linear) else m for m in layers), nn.Linear(8, 1)).double()
    exact.load_state_dict(model.state_dict())
    batch = torch.randn(16, 8)
    model(batch).square().mean().backward()
    exact(batch.double()).square().mean().backward()
    first, wanted = model[0].weight, exact[0].weight.grad.flatten()
    assert 0 < norm_of(first.grad) < 1e-25, "torch's own norm of it is 0"
    healthy = Untouched([model[-1].weight])
    report = clip_grad_tensor_norm_(model, floor=1e-3)
    assert report.raised > depth
    assert report.zero == report.clipped == 0
    healthy.check()
    assert all(norm_of(parameter.grad) >= 0.999e-3 for parameter in model.parameters())
    cosine = torch.dot(first.grad.double().flatten(), wanted) / (norm_of(first.grad) * wanted.norm())
    assert float(cosine) == pytest.approx(1, abs=1e-5)


def test_floor_leaves_zero_zero_and_counts_it() -> None:
    params = parameters(torch.zeros(3), torch.tensor([1e-20]), torch.tensor([2.0]))
    watch = Untouched([params[0], params[2]])
    report = clip_grad_tensor_norm_(params, 2.0, floor=1.0)
    watch.check()
    assert (report.zero, report.raised, report.clipped) == (1, 1, 0)
    assert params[1].grad.tolist() == [1.0]


def naive_common(norms: list[float], floor: float, maximum: float) -> float:
    """Largest factor by bisection."""

    def total(c: float) -> float:
        return math.hypot(*(max(floor, c * n) for n in norms))

    low, high = 0.0, 1.0
    if total(1.0) <= maximum:
        return 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) <= maximum else (low, middle)
    return low


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(-30, 30).map(lambda e: 10.0**e), min_size=1, max_size=8), st.floats(-20, 20), st.floats(0, 1))
def test_floor_under_a_global_bound_is_the_largest_factor(norms: list[float], size: float, share: float) -> None:
    maximum = 10.0**size
    floor = maximum / math.sqrt(len(norms)) * 10 ** (-10 * share) * 0.999
    got, wanted = common_factor(norms, floor, maximum), naive_common(norms, floor, maximum)
    reached = [[max(floor, c * n) for n in norms] for c in (got, wanted)]
    assert reached[0] == pytest.approx(reached[1], rel=1e-6)
    assert math.hypot(*reached[0]) <= maximum * (1 + 1e-9)


def test_floor_and_global_bound_hold_together() -> None:
    params = parameters(torch.tensor([1e-9]), torch.tensor([30.0]), torch.tensor([40.0]), torch.zeros(1))
    report = clip_grad_global_norm_(params, 5.0, floor=0.3)
    after = [abs(float(p.grad)) for p in params]
    assert (report.norm, report.clipped, report.raised, report.zero) == (pytest.approx(50), 2, 1, 1)
    assert math.hypot(*after) == pytest.approx(5.0, rel=1e-6)
    assert after[0] == pytest.approx(0.3)
    assert after[1] / after[2] == pytest.approx(0.75, rel=1e-6)
    assert after[3] == 0


def test_what_shrinks_with_the_others_stops_at_the_floor() -> None:
    params = parameters(torch.tensor([0.35]), torch.tensor([40.0]))
    clip_grad_global_norm_(params, 5.0, floor=0.3)
    after = [float(p.grad) for p in params]
    assert after == pytest.approx([0.3, math.sqrt(25 - 0.09)], rel=1e-6)


def test_a_floor_that_nobody_is_below_changes_nothing() -> None:
    params = parameters(torch.tensor([1.0, 2.0]), torch.tensor([3.0]))
    watch = Untouched(params)
    assert clip_grad_global_norm_(params, 100.0, floor=0.1).raised == 0
    assert clip_grad_tensor_norm_(params, 100.0, floor=0.1).raised == 0
    watch.check()


BAD = [(-1.0, 0.0), (0.0, 0.0), (math.nan, 0.0), (1.0, -1.0), (1.0, math.nan), (1.0, 2.0), (math.inf, math.inf)]


@pytest.mark.parametrize("clip", [clip_grad_global_norm_, clip_grad_tensor_norm_])
@pytest.mark.parametrize(("maximum", "floor"), [*BAD, (-math.inf, 0.0)])
def test_senseless_bounds(clip: object, maximum: float, floor: float) -> None:
    """torch and optax turn the gradients around below 0; Keras silently switches clipping off."""
    params = parameters(torch.tensor([3.0]))
    watch = Untouched(params)
    with pytest.raises(ValueError, match=r"(maximum|floor)=.*Expected.*\. \w+"):
        clip(params, maximum, floor=floor)  # type: ignore[operator]
    watch.check()


@pytest.mark.parametrize("clip", [clip_grad_global_norm_, clip_grad_tensor_norm_])
@pytest.mark.parametrize("bad", ["1", None, [1.0], 1j, torch.ones(2)])
def test_bounds_that_are_no_numbers(clip: Callable[..., ClipReport], bad: object) -> None:
    params = parameters(torch.tensor([3.0]))
    watch = Untouched(params)
    with pytest.raises(ValueError, match=r"maximum=.*Expected a number.*\. Pass \w+"):
        clip(params, bad)
    with pytest.raises(ValueError, match=r"floor=.*Expected a number.*\. Pass \w+"):
        clip(params, 1.0, floor=bad)
    watch.check()


@pytest.mark.parametrize("bound", [np.float32(1), np.int64(1), torch.tensor(1.0), torch.ones(1, requires_grad=True), 1])
def test_bounds_that_are_numbers_of_other_kinds(bound: float) -> None:
    for clip in (clip_grad_global_norm_, clip_grad_tensor_norm_):
        (parameter,) = params = parameters(torch.tensor([3.0]))
        assert clip(params, bound).clipped == 1
        assert parameter.grad.tolist() == [1.0]
        assert not parameter.grad.requires_grad


def test_a_floor_without_room_under_the_global_bound() -> None:
    params = parameters(torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match=r"floor <= 0\.7071"):
        clip_grad_global_norm_(params, 1.0, floor=0.8)


def test_a_floor_that_the_dtype_cannot_hold() -> None:
    params = parameters(torch.ones(1, dtype=torch.float16))
    with pytest.raises(ValueError, match="float16"):
        clip_grad_tensor_norm_(params, floor=1e5)


@pytest.mark.parametrize(
    "shape", [(300, 100), (129, 129), (7, 5, 31, 23), (16385,), (3, 16384), (40, 1024), (1, 20001)]
)
@pytest.mark.parametrize("order", ["contiguous", "transposed", "strided"])
def test_the_norm_of_large_tensors_of_any_shape(shape: tuple[int, ...], order: str) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if order == "transposed":
        values = values.mT if values.ndim > 1 else values
    if order == "strided":
        values = values.repeat_interleave(2, dim=-1)[..., ::2]
    parameter = torch.nn.Parameter(torch.zeros_like(values))
    parameter.grad = values
    report = clip_grad_global_norm_([parameter])
    assert report.norm == pytest.approx(math.sqrt(math.fsum((values.double() ** 2).flatten().tolist())), rel=1e-6)
