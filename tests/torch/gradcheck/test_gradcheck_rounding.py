"""What cancels within a piece leaves rounding of what was subtracted: noise is no wrong derivative, and hides none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_table import spread_loss
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.gradcheck import gradcheck, gradcheck_function


class Cancels(nn.Module):
    """Zero, computed from large numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1) - x.mean(-1, keepdim=True) - 1 + 3 * (x.softmax(-1).sum(-1, keepdim=True) - 1)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 1), nn.LayerNorm(1)), (4, 4)),
        (lambda: nn.Sequential(nn.Linear(4, 1), nn.LayerNorm(1, elementwise_affine=False)), (4, 4)),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(4, 4)), (4, 4)),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(4, 4)), (4, 4, 1, 1)),
        (lambda: nn.Sequential(nn.Linear(4, 1), nn.RMSNorm(1)), (4, 4)),
        (lambda: nn.Sequential(nn.Linear(4, 1), Cancels()), (4, 4)),
    ],
    ids=["layer", "layer without weights", "group", "group of 1 x 1 maps", "rms", "by hand"],
)
def test_norms_of_a_single_number_are_right(make: Callable[[], nn.Module], shape: tuple[int, ...], size: float) -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        net = make()
        check = gradcheck(net, spread_loss, (size * torch.randn(shape), torch.zeros(1)))
        assert check.ok, check
        told = isinstance(net[1], nn.RMSNorm) or all(one.trivial for one in check.skipped)  # its derivative is 1e-12
        assert told, check


class Norm(torch.autograd.Function):
    """A LayerNorm over the last axis; ``factors`` make its derivatives wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, factors: tuple[float, float, float]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.factors = factors
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = (one.detach().requires_grad_() for one in ctx.saved_tensors)
        bias = torch.zeros_like(weight).requires_grad_()
        with torch.enable_grad():
            y = F.layer_norm(x, x.shape[-1:], weight, bias)
        parts = torch.autograd.grad(y, (x, weight, bias), grad)
        return *(part * factor for part, factor in zip(parts, ctx.factors, strict=True)), None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [1, 4])
def test_a_wrong_derivative_beside_noise_is_found(width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(5, width, generator=generator), torch.rand(width, generator=generator)
    inputs = x, weight, torch.zeros(width)
    assert gradcheck_function(Norm.apply, *inputs, (1.0, 1.0, 1.0)).ok
    by_bias = gradcheck_function(Norm.apply, *inputs, (1.0, 1.0, -3.0))
    assert [failure.tensor for failure in by_bias.failures] == ["input[2]"]
    if width > 1:  # else nothing but the bias has a derivative
        for k, factors in enumerate([(-3.0, 1.0, 1.0), (1.0, -3.0, 1.0)]):
            check = gradcheck_function(Norm.apply, *inputs, factors)
            assert [failure.tensor for failure in check.failures] == [f"input[{k}]"]


def test_a_derivative_where_there_is_none_is_found() -> None:
    class Made(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return F.layer_norm(x, (1,))

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 1e-3 * grad

    assert not gradcheck_function(Made.apply, torch.randn(5, 1, generator=torch.Generator().manual_seed(0))).ok
