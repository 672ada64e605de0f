"""Complex numbers are checked by their real and their imaginary part, against PyTorch's own check as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_table import spread_loss
from torch import Tensor, nn

from unvanish.torch.gradcheck import gradcheck, gradcheck_function


class Spectral(nn.Module):
    """A complex weight and a complex bias behind a Fourier transform, with casts by every name."""

    def __init__(self, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, dtype=dtype)), nn.Parameter(torch.randn(3, dtype=dtype))
        self.register_buffer("phase", torch.randn(3, dtype=dtype))
        self.turn = torch.randn(3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.fft.fft(self.inner(x).float()).cfloat() @ self.weight.to(torch.complex64)
        return (z.conj() + self.bias * self.phase).abs() + (z * self.turn).real


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_model_with_complex_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Spectral(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check = gradcheck(model, spread_loss, (torch.randn(5, 4), torch.zeros(1)))
    assert check.ok, check
    assert [one for one in check.skipped if not one.trivial] == []
    assert check.loss is not None
    assert check.loss.ok
    assert max(module.relative_error for module in check.modules) < 1e-8
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.turn.dtype == dtype


def test_a_complex_output_inside_and_only_complex_weights() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return x.to(self.weight.dtype) @ self.weight

    torch.manual_seed(1)
    model = nn.Sequential(Inside(), nn.Tanh(), Inside())
    check = gradcheck(model, lambda y, _: y.abs().square().sum(), (torch.randn(5, 4), torch.zeros(1)))
    assert check.ok, check
    assert {module.module for module in check.modules} >= {"0", "1", "2", "loss"}


FUNCTIONS = [torch.abs, torch.sin, torch.conj, torch.view_as_real, torch.fft.ifft, lambda z: z * z.conj(), torch.angle]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_agrees_with_pytorch_s_own_check(function: Callable[[Tensor], Tensor]) -> None:
    z = torch.randn(3, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(function, z.clone().requires_grad_())
    assert gradcheck_function(function, z).ok
    assert gradcheck_function(function, z.to(torch.complex64)).ok
    assert gradcheck_function(function, z.t()).ok


def test_a_wrong_imaginary_part_is_named() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            ctx.save_for_backward(z)
            return z * z

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            right = 2 * grad * ctx.saved_tensors[0].conj()
            right[1, 2] = torch.complex(right[1, 2].real, -3 * right[1, 2].imag)
            return right

    z = torch.randn(3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    (failure,) = gradcheck_function(Square.apply, z).failures
    assert failure.index == (1, 2, 1)  # 1: the imaginary part
    assert failure.analytic == pytest.approx(-3 * failure.numeric, rel=1e-6)
    assert not torch.autograd.gradcheck(Square.apply, z.cdouble().requires_grad_(), raise_exception=False)


def test_a_complex_nan_is_blamed_where_it_came_in() -> None:
    z = torch.ones(2, 2, dtype=torch.complex64)
    z[1, 0] = torch.complex(torch.tensor(0.0), torch.tensor(torch.nan))
    (failure,) = gradcheck_function(torch.sin, z).failures
    assert failure.where == "sin (function) input[1, 0]"
