"""Multiplying gradients by ``target / norm``, also where that ratio leaves the range of their dtype."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from unvanish.torch.clip.gradients import Gradient
from unvanish.torch.clip.survey import by_kind

_STEP = 100  # powers of 2 that are safe to multiply by in float32
_SAFE = (2.0**-_STEP, 2.0**_STEP)
MILD = 2.0**_STEP  # a factor above its inverse is one multiplication


def scale_(gradients: Iterable[Gradient], ratio: tuple[float, float]) -> None:
    """Multiply all by ``ratio[0] / ratio[1]``, a norm that is wanted and the norm there is."""
    low, high = _SAFE
    target, norm = ratio
    factor = target / norm
    for group in by_kind(gradients):
        datas = [gradient.data for gradient in group]
        for part in (factor,) if low <= factor <= high else _factors(target, norm):
            _multiply_(datas, part)
        for gradient in group:
            gradient.commit()


def _multiply_(tensors: list[Tensor], factor: float) -> None:
    """One device and dtype; torch's foreach on the CPU would round the factor to half precision first."""
    if tensors[0].dtype.itemsize < 4 and tensors[0].device.type == "cpu":
        for tensor in tensors:
            tensor.mul_(factor)
    else:
        torch._foreach_mul_(tensors, factor)


def scale_units_(data: Tensor, factors: Tensor) -> None:
    """Multiply by factors of at most 1 that broadcast, given in float64."""
    first = factors.clamp(min=_SAFE[0])
    data.mul_(first.to(data.device, arithmetic(data.dtype)))
    if bool((first > factors).any()):
        data.mul_((factors / first).to(data.device, arithmetic(data.dtype)))


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """In which gradients of this dtype are multiplied."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _factors(target: float, norm: float) -> list[float]:
    """Factors whose product is ``target / norm``, each in float32, no intermediate result beyond both ends."""
    (above, up), (below, down) = math.frexp(target), math.frexp(norm)
    left, sign = up - down, 1 if up > down else -1
    steps = []
    while left:
        step = sign * min(_STEP, abs(left))
        steps.append(2.0**step)
        left -= step
    return [*steps[:1], above / below, *steps[1:]]
