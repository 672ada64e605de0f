"""Slow, independent clipping: exact fractions of Python numbers, one entry at a time."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor


def entries(tensor: Tensor) -> list[float]:
    """All numbers of a tensor as Python floats; complex ones as two."""
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    real = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
    return real.detach().double().reshape(-1).tolist()


def norm(values: list[float]) -> float:
    """L2 norm by exact rational squares: no rounding, underflow or overflow before the root."""
    square = sum((Fraction(v) ** 2 for v in values), Fraction(0))
    if not square:
        return 0.0
    shift = (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    return math.ldexp(math.sqrt(square / Fraction(4) ** shift), shift)


def norm_of(*tensors: Tensor) -> float:
    return norm([value for tensor in tensors for value in entries(tensor)])


def scaled(values: list[float], target: float, size: float) -> list[float]:
    return [float(Fraction(v) * Fraction(target) / Fraction(size)) for v in values]


def smallest(dtype: torch.dtype) -> float:
    """Distance of neighbouring numbers near 0."""
    info = torch.finfo(dtype)
    return info.tiny * info.eps


def near(got: Tensor, wanted: list[float], rel: float | None = None) -> None:
    """Equal up to a few roundings of the dtype, near 0 up to a few of its subnormal steps."""
    info = torch.finfo(got.dtype)
    rel = max(4 * info.eps, 2e-6) if rel is None and info.bits < 64 else rel or 1e-12
    for have, want in zip(entries(got), wanted, strict=True):
        assert math.isclose(have, want, rel_tol=rel, abs_tol=2 * smallest(got.dtype)), (have, want)


def parameters(*grads: Tensor | None) -> list[Tensor]:
    made = []
    for grad in grads:
        made.append(torch.zeros(1) if grad is None else torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device))
        made[-1].grad = grad
    return made


class Untouched:
    """Remembers gradients bit for bit, with their version counters and their place."""

    def __init__(self, params: list[Tensor]) -> None:
        self._params = params
        self._before = [self._state(p) for p in params]

    @staticmethod
    def _state(parameter: Tensor) -> tuple[object, ...]:
        grad = parameter.grad
        if grad is None:
            return (None,)
        plain = grad._values() if grad.is_sparse else grad
        raw = plain.detach().clone().contiguous().reshape(-1).view(torch.uint8).tolist() if plain.numel() else []
        return id(grad), grad._version, plain._version, plain.data_ptr(), plain.stride(), raw

    def check(self) -> None:
        assert [self._state(p) for p in self._params] == self._before
