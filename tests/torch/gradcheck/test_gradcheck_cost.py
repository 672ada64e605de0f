"""What is left out to be fast changes nothing: layers without watch, numbers drawn once, tiny tensors together."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_table import ROWS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from unvanish.torch.gradcheck import directional, gradcheck, gradcheck_function, units
from unvanish.torch.gradcheck.differences import differences
from unvanish.torch.gradcheck.plain import PLAIN, is_plain
from unvanish.torch.gradcheck.stream import Draws, Stream


class Dtypes(TorchFunctionMode):
    """Notes every dtype or cast that is asked for by name."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = [*args, *(kwargs or {}).values()]
        if any(isinstance(value, torch.dtype) for value in values) or func in (Tensor.float, Tensor.to, Tensor.type):
            self.asked.append(func)
        return func(*args, **(kwargs or {}))


def streams() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", sorted(PLAIN, key=lambda kind: kind.__name__))
def test_plain_layers_cast_nothing_and_draw_nothing(kind: type[nn.Module], training: bool) -> None:
    row = ROWS[kind.__name__]
    layer, inputs = (
        row.make().double().train(training),
        [x.double() if x.is_floating_point() else x for x in row.inputs()],
    )
    assert type(layer) is kind
    assert is_plain(layer)
    before = streams()
    with Dtypes() as dtypes:
        output = layer(*inputs)
    assert dtypes.asked == []
    assert streams() == before
    assert output.dtype == torch.float64
    with torch.no_grad():  # as it is moved
        assert torch.equal(layer(*inputs), output) or training


def test_the_watch_over_casts_sees_them() -> None:
    with Dtypes() as dtypes:
        torch.ones(2).softmax(0, dtype=torch.float64).float()
    assert len(dtypes.asked) == 2


def hooked(name: str) -> nn.Module:
    layer = nn.Linear(3, 3)
    getattr(layer, f"register_{name}")(lambda *_: None)
    return layer


def patched() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: F.linear(x.float(), layer.weight)
    return layer


def weight_hooked() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight.register_hook(lambda grad: 2 * grad)
    return layer


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))


class Own(nn.Linear):
    pass


@pytest.mark.parametrize(
    "make",
    [
        *(lambda name=name: hooked(name) for name in (
            "forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")),
        patched, weight_hooked, parametrized, lambda: Own(3, 3), nn.Dropout, nn.RReLU, lambda: nn.LSTM(3, 3),
    ],
)  # fmt: skip
def test_what_runs_code_of_the_user_or_draws_is_not_plain(make: Callable[[], nn.Module]) -> None:
    assert is_plain(nn.Linear(3, 3))
    assert not is_plain(make())


def test_global_hooks_and_a_replaced_forward_make_nothing_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not is_plain(nn.Linear(3, 3))
    finally:
        handle.remove()
    assert is_plain(nn.Linear(3, 3))
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert not is_plain(nn.Linear(3, 3))


def test_a_patched_forward_that_casts_is_still_checked_in_float64() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    net[0].forward = lambda x: F.linear(x, net[0].weight, net[0].bias)
    vars(net[1])["forward"] = lambda x: x.float().tanh()
    check = gradcheck(net, F.mse_loss, (torch.randn(5, 3), torch.randn(5, 3)))
    assert check.ok
    assert {"0", "1"} <= {module.module for module in check.modules}, check
    assert max(module.relative_error for module in check.modules) < 1e-8, check


@given(sizes=st.lists(st.integers(0, 50), max_size=6), kept=st.integers(0, 200))
def test_pieces_draw_the_same_and_can_go_back(sizes: list[int], kept: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unvanish.torch.gradcheck.stream._KEPT", kept)
        stream = Stream()
        asked = [torch.empty(size) for size in sizes]
        first, second = Draws(stream), Draws(stream)
        one = [first.like(values) for values in asked]
        here = second.here()
        two = [second.like(values) for values in asked]
        second.back(here)
        three = [second.like(values) for values in asked]
        following = second.like(torch.empty(40, dtype=torch.float64))
    assert all(map(torch.equal, one, two))
    assert all(map(torch.equal, two, three))
    drawn = torch.cat([*one, following])
    assert drawn.abs().max() <= 1
    assert drawn.unique().numel() == drawn.numel()  # none is used twice


def naive(y: Tensor, scale: float, around: list[Tensor], step: float) -> tuple[Tensor, ...]:
    """Slope, both disagreements and what is smooth, entry by entry, as the formulas have it."""
    up, down, half_up, half_down = around
    whole, half = (up - down) / (2 * step), (half_up - half_down) / step
    bend, half_bend = ((up + down) - 2 * y) / step, ((half_up + half_down) - 2 * y) / (step / 2)
    uneven, bent = whole - half, bend - 2 * half_bend
    rounding = 16 * 2.0**-52 * (y.abs() + scale) / step
    limit = 1e-5 * (whole.abs() + half.abs() + bend.abs()) + rounding
    smooth = (torch.maximum(uneven.abs(), bent.abs()) <= limit) & (limit < torch.inf)
    return half + (half - whole) / 3, half, uneven, bent, rounding, smooth


@given(
    function=st.sampled_from([torch.tanh, torch.relu, torch.exp, torch.square, torch.round, torch.sqrt, torch.abs]),
    power=st.integers(-12, 3),
    step=st.sampled_from([1e-7, 1e-6, 1e-5, 1e-4, 1e-2]),
    seed=st.integers(0, 2**31),
    chunk=st.sampled_from([7, 29, 1 << 15]),
)
def test_differences_are_those_of_the_formulas(
    function: Callable[[Tensor], Tensor], power: int, step: float, seed: int, chunk: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, d, c = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64) * 10.0**power
    d[0] = 0.0
    x[1, :2] = 0.0
    y, around = function(x), [function(x + f * step * d) for f in (1.0, -1.0, 0.5, -0.5)]
    scale = 10.0**power
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unvanish.torch.gradcheck.differences._CHUNK", chunk)
        found = differences(y, scale, around, step)
    slope, half, uneven, bent, rounding, smooth = naive(y, scale, around, step)
    mask = torch.ones_like(smooth) if found.smooth is None else found.smooth.view(y.shape)
    assert torch.equal(mask, smooth)
    assert found.smooth_entries() == int(smooth.sum())
    slope, half, uneven, bent, rounding = (
        torch.where(smooth, part, 0.0) for part in (slope, half, uneven, bent, rounding)
    )
    c = c.where(smooth, 0.0)
    along = found.along(c)
    close = 1e-14 * float((c * slope).abs().sum()) + 1e-15 * float((c * y.nan_to_num()).abs().sum()) / step
    assert along.value == pytest.approx(float((c * slope).sum()), rel=1e-12, abs=close)
    assert along.uneven == pytest.approx(float((c * uneven).sum()), rel=1e-9, abs=close)
    assert along.bent == pytest.approx(float((c * bent).sum()), rel=1e-9, abs=4 * close)
    assert found.length(c) == pytest.approx(float((c * half).norm()), rel=1e-12)
    assert found.rounding(c) == pytest.approx(float((c * rounding).norm()), rel=1e-12)


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[str]:
    seen: list[str] = []
    real = getattr(owner, name)

    def counting(self: Any, *args: Any) -> Any:
        unit = self if isinstance(self, units.Unit) else self.unit
        seen.append(unit.module)
        return real(self, *args)

    monkeypatch.setattr(owner, name, counting)
    return seen


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 1e-12, 1e-18, 1e-30])
def test_tiny_biases_take_no_measurement_of_their_own(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Tanh())))
    for layer in net[::2]:
        nn.init.orthogonal_(layer.weight, 1.5)
        layer.bias.data.normal_().mul_(size)
    measured = counted(monkeypatch, directional.Probe, "measure")
    check = gradcheck(net, F.mse_loss, (torch.randn(9, 8), torch.randn(9, 8)))
    assert check.ok
    assert all(skipped.trivial for skipped in check.skipped), check
    assert max(measured.count(str(k)) for k in range(12)) <= (2 if size == 1e-3 else 1)


def test_casts_are_watched_as_long_as_there_are_any() -> None:
    """In float32 the differences of the inputs' own square would be noise."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).float().square().to(torch.float32)

    check = gradcheck(Net(), F.mse_loss, (torch.randn(7, 5), torch.randn(7, 5)))
    assert check.ok, check
    assert all(one.relative_error < 1e-9 for one in check.modules), check


@pytest.mark.parametrize("seed", range(5))
def test_a_kinked_or_sharp_piece_takes_the_second_step_size(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(seed)
    run = counted(monkeypatch, units.Unit, "_outputs")
    for function in (F.relu, lambda x: torch.sin(1e3 * x)):
        x = torch.randn(50, 40)
        x[0] = 0.0
        run.clear()
        check = gradcheck_function(function, x)
        assert check.ok, check
        assert len(run) >= 5
