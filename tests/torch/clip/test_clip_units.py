"""Adaptive clipping, against loops over the units of each kind of layer written out by hand, and optax' test."""

from __future__ import annotations

import importlib.metadata
import math
import runpy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from clip_oracle import Untouched, near, norm_of, parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unvanish.torch.clip import clip_grad_unit_norm_
from unvanish.torch.clip.units import ROWS, WHOLE, Units, units_in, units_of

Slices = Iterator[Tensor]


def naive(weight: Tensor, grad: Tensor, units: Callable[[Tensor], Slices], ratio: float, eps: float) -> Tensor:
    """One unit after the other, as views into a float64 copy."""
    wanted = grad.double().clone()
    for w, g in zip(units(weight.double()), units(wanted), strict=True):
        bound = ratio * max(norm_of(w), eps)
        size = norm_of(g)
        if size > bound:
            g.mul_(bound / size)
    return wanted


def rows(tensor: Tensor) -> Slices:
    yield from tensor


def whole(tensor: Tensor) -> Slices:
    yield tensor


def columns(tensor: Tensor) -> Slices:
    for i in range(tensor.shape[1]):
        yield tensor[:, i]


def grouped(groups: int) -> Callable[[Tensor], Slices]:
    def outputs(tensor: Tensor) -> Slices:
        per_group = tensor.shape[0] // groups
        for group in range(groups):
            for out in range(tensor.shape[1]):
                yield tensor[group * per_group : (group + 1) * per_group, out]

    return outputs


LAYERS: list[tuple[str, Callable[[], nn.Module], Callable[[Tensor], Slices]]] = [
    ("Linear", lambda: nn.Linear(3, 4), rows),
    ("Bilinear", lambda: nn.Bilinear(3, 2, 4), rows),
    ("Conv1d", lambda: nn.Conv1d(4, 6, 3, groups=2), rows),
    ("Conv2d", lambda: nn.Conv2d(3, 4, 3), rows),
    ("Conv2d channels_last", lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), rows),
    ("Conv3d", lambda: nn.Conv3d(2, 3, 2), rows),
    ("ConvTranspose1d", lambda: nn.ConvTranspose1d(3, 4, 3), columns),
    ("ConvTranspose2d", lambda: nn.ConvTranspose2d(5, 4, 3), columns),
    ("ConvTranspose2d, 3 groups", lambda: nn.ConvTranspose2d(6, 9, 3, groups=3), grouped(3)),
    ("ConvTranspose3d, 2 groups", lambda: nn.ConvTranspose3d(4, 6, 2, groups=2), grouped(2)),
    ("Embedding", lambda: nn.Embedding(5, 3), rows),
    ("EmbeddingBag", lambda: nn.EmbeddingBag(5, 3), rows),
    ("RNN", lambda: nn.RNN(3, 4, 2, bidirectional=True), rows),
    ("LSTM", lambda: nn.LSTM(3, 4, proj_size=2), rows),
    ("GRUCell", lambda: nn.GRUCell(3, 4), rows),
    ("MultiheadAttention", lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5), rows),
    ("LayerNorm", lambda: nn.LayerNorm(7), rows),
    ("LayerNorm of two axes", lambda: nn.LayerNorm((3, 4)), whole),
    ("RMSNorm of two axes", lambda: nn.RMSNorm((3, 4)), whole),
    ("RMSNorm of three axes", lambda: nn.RMSNorm((2, 3, 4)), whole),
    ("BatchNorm", lambda: nn.BatchNorm2d(7), rows),
    ("PReLU", nn.PReLU, rows),
]


@pytest.mark.parametrize(("make", "units"), [case[1:] for case in LAYERS], ids=[case[0] for case in LAYERS])
@pytest.mark.parametrize("size", [1e-43, 1e-30, 1e-3, 1.0, 1e30])
def test_units_of_every_layer(make: Callable[[], nn.Module], units: Callable[[Tensor], Slices], size: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), make())
    wanted, watched = {}, {}
    eps = 1e-3 * min(1.0, size)
    for name, parameter in model.named_parameters():
        steps = torch.logspace(-3, 3, parameter.shape[0] if parameter.ndim else 1)  # some units above, some below
        grad = torch.randn_like(parameter) * steps.reshape(-1, *[1] * (parameter.ndim - 1)) * size
        parameter.data.mul_(size) if size < 1e-3 else None
        parameter.grad = grad.clone(memory_format=torch.preserve_format)
        cut = whole if parameter.ndim < 2 else units
        wanted[name] = naive(parameter.detach(), grad, cut, 0.5, eps)
        watched[name] = Untouched([parameter]), torch.equal(wanted[name], grad.double())
    before = norm_of(*(p.grad for p in model.parameters()))
    report = clip_grad_unit_norm_(model, 0.5, eps=eps)
    assert report.norm == pytest.approx(before, rel=2e-6)
    assert report.clipped == sum(not same for _, same in watched.values())
    for name, parameter in model.named_parameters():
        near(parameter.grad, wanted[name].flatten().tolist(), rel=3e-6)
        if watched[name][1]:
            watched[name][0].check()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(-44, 37),
    st.floats(-20, 20),
    st.floats(-6, 3).map(lambda e: 10.0**e),
    st.floats(-30, 1).map(lambda e: 10.0**e),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_any_scale(seed: int, grad_size: float, size: float, ratio: float, eps: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    most = torch.finfo(dtype).max / 8
    spread = 10.0 ** torch.linspace(-8, 8, 5, dtype=torch.float64)[:, None]
    wide = torch.randn(5, 3, generator=generator, dtype=torch.float64) * 10.0**grad_size * spread
    grad = wide.clamp(-most, most).to(dtype)
    weight = (torch.randn(5, 3, generator=generator, dtype=torch.float64) * 10.0**size).to(dtype)
    wanted = naive(weight, grad, rows, ratio, eps)
    weight.grad = grad.clone()
    clip_grad_unit_norm_([weight], ratio, eps=eps)
    near(weight.grad, wanted.flatten().tolist(), rel=1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_optax_published_property() -> None:
    """Clipped, no unit norm is above the clipping share of its weights' norm."""
    for i in range(1, 51):
        weights = [torch.tensor([[500.0, 5.0]]), torch.tensor([[300.0, 3.0]])]
        for weight in weights:
            weight.grad = weight.clone()
        clip_grad_unit_norm_(weights, 1 / i)
        for weight in weights:
            assert norm_of(weight.grad) - norm_of(weight) / i < 1e-6 * norm_of(weight)


def timm_agc() -> Any:
    """timm's clipping from its own file: ``import timm`` needs torchvision, this file only torch."""
    try:
        files = importlib.metadata.files("timm") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("timm is not installed")
    path = next(file for file in files if file.as_posix() == "timm/utils/agc.py").locate()
    return runpy.run_path(str(path))["adaptive_clip_grad"]


@pytest.mark.parametrize("ratio", [1e-3, 0.01, 0.3])
@pytest.mark.parametrize("eps", [1e-3, 10.0])
def test_timm(ratio: float, eps: float) -> None:
    """Of layers whose units are rows; some units above their bound, some below."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(3, 4, 3), nn.LayerNorm(7), nn.Conv3d(2, 3, 2)).double()
    theirs = [parameter.detach().clone() for parameter in model.parameters()]
    for ours, their in zip(model.parameters(), theirs, strict=True):
        steps = torch.logspace(-4, 1, ours.shape[0], dtype=torch.float64).reshape(-1, *[1] * (ours.ndim - 1))
        ours.grad = torch.randn_like(ours) * steps
        their.grad = ours.grad.clone()
    clip_grad_unit_norm_(model, ratio, eps=eps)
    timm_agc()(theirs, ratio, eps)
    for ours, their in zip(model.parameters(), theirs, strict=True):
        torch.testing.assert_close(ours.grad, their.grad, rtol=1e-12, atol=0)


def test_bare_and_named_parameters_fall_back_to_rows() -> None:
    layer = nn.ConvTranspose1d(3, 4, 2, bias=False)
    grads = []
    for way in (layer, layer.parameters(), layer.named_parameters()):
        layer.weight.grad = torch.arange(24.0).view(3, 4, 2)
        clip_grad_unit_norm_(way, 0.01)
        grads.append(layer.weight.grad)
    assert torch.equal(grads[1], grads[2])
    assert not torch.equal(grads[0], grads[1])
    torch.testing.assert_close(
        grads[1].double(), naive(layer.weight.detach(), torch.arange(24.0).view(3, 4, 2), rows, 0.01, 1e-3)
    )


def test_columns_of_gpt2() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer = Conv1D(4, 3)
    grad = torch.randn(3, 4) * torch.logspace(-4, 2, 4)
    layer.weight.grad = grad.clone()
    clip_grad_unit_norm_(layer, 0.3)
    torch.testing.assert_close(layer.weight.grad.double(), naive(layer.weight.detach(), grad, columns, 0.3, 1e-3))


def test_parametrized_layers_keep_their_units() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(3, 4, 2), dim=1)
    known = units_in(layer)
    magnitude, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    assert units_of(direction, known) == units_of(magnitude, known) == Units((1,))
    assert units_of(layer.bias, known) == WHOLE
    plain = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    assert units_of(plain.parametrizations.weight.original1, units_in(plain)) == ROWS


def test_complex_units() -> None:
    weight = torch.tensor([[3 + 4j], [0.1j]])
    weight.grad = torch.tensor([[6 + 8j], [1e-5j]])
    clip_grad_unit_norm_([weight], 0.1)
    torch.testing.assert_close(weight.grad, torch.tensor([[0.3 + 0.4j], [1e-5j]]))


def test_zero_weights_count_as_eps() -> None:
    """As in the paper and in every peer: a zero-initialised layer may grow by ratio * eps a step."""
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    clip_grad_unit_norm_(layer, 0.01, eps=1e-3)
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[6e-6, 8e-6]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_leaves_the_bounds_of_the_other_units(bad: float) -> None:
    weight = torch.ones(3, 4)
    weight[0, 0] = bad
    weight.grad = torch.ones(3, 4)
    assert clip_grad_unit_norm_(weight, 0.01).clipped == 1
    torch.testing.assert_close(weight.grad[1:], torch.full((2, 4), 0.01))
    assert weight.grad[0].tolist() == [1.0] * 4


def test_half_precision_rows_do_not_overflow() -> None:
    """timm: a row whose norm is above 65,504 becomes 0."""
    weight = torch.ones(1, 4, dtype=torch.float16)
    weight.grad = torch.full((1, 4), 6e4, dtype=torch.float16)
    report = clip_grad_unit_norm_([weight], 0.01)
    assert report.norm == pytest.approx(1.2e5, rel=1e-3)
    near(weight.grad, [0.01] * 4, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_clipping_twice_is_clipping_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.LayerNorm((2, 4)), nn.ConvTranspose1d(4, 6, 3, groups=2)).to(dtype)
    for _ in range(30):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        assert clip_grad_unit_norm_(model).clipped == 6
        watch = Untouched(list(model.parameters()))
        assert clip_grad_unit_norm_(model).clipped == 0
        watch.check()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "a", "0.01", None, [], torch.ones(2)])
def test_senseless_settings(value: Any) -> None:
    params = parameters(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"ratio=.*Expected.*above 0"):
        clip_grad_unit_norm_(params, value)
    with pytest.raises(ValueError, match=r"eps=.*Expected.*above 0"):
        clip_grad_unit_norm_(params, eps=value)


def test_gradients_sparse_within_their_units_are_refused() -> None:
    weight = torch.zeros(3, 2)
    weight.grad = torch.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, 2.0], (3, 2), check_invariants=True)
    with pytest.raises(ValueError, match=r"'w'.*sparse within its units.*Expected.*to_dense"):
        clip_grad_unit_norm_([("w", weight)])
