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
ROUNDING = {  # a share of the norm: half a step of an entry, and twice what a norm in float32 is right to
    torch.float64: 1e-12,
    torch.float32: 3.2e-5,
    torch.bfloat16: 2.0**-8 + 3.2e-5,
    torch.float16: 2.0**-11 + 3.2e-5,
}
_STEP_AT_0 = {dtype: torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in ROUNDING}
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


def rounding(gradient: Gradient) -> float:
    """How far at most a gradient that was scaled to its norm is from it: its entries and the norm are rounded.

    No entry is more than half a step of its dtype away; near 0 steps are of one size, and no more entries are one step
    or larger than the norm allows.
    """
    parameter, dtype = gradient.parameter, gradient.data.dtype
    size = parameter.numel() * (2 if parameter.is_complex() else 1)  # the whole, the same in all processes
    return gradient.norm * ROUNDING[dtype] + min(math.sqrt(size) * _STEP_AT_0[dtype], gradient.norm) / 2


def most_at_0(dtypes: set[torch.dtype]) -> float:
    """What half steps near 0 add up to at most, in a network of 2^42 entries."""
    return 2.0**20 * max(_STEP_AT_0[dtype] for dtype in dtypes)


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
