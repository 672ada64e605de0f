"""Omega of tanh and ReLU recurrences: everything in closed form.

With x_t the pre-activation, x_{t+1} = W s(x_t) + ..., so that u_t = s'(x_t) * W^T v_{t+1} for the cotangent v.
s' is read off the states: 1 - h^2 for tanh, h > 0 for ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unvanish.torch.regularize.ratios import Part, deviation, lengths, outer

_LOST = 1e-30  # below this a float32 cotangent is on its way out of range


def slopes(states: Tensor, name: str) -> Tensor:
    """s'(x) of the recurrence called ``name``, from h = s(x)."""
    return 1 - states * states if "tanh" in name else (states > 0).to(states.dtype)


def simple_part(weight: Tensor, slope: Tensor, cotangents: Tensor) -> Part:
    """Omega of the steps between neighbouring states.

    Args:
        weight: W (features, features), x_{t+1} = s(x_t) W^T.
        slope: s'(x_t) of the states that the steps start from, (steps, samples, features).
        cotangents: dC/dx_{t+1}, in any scale per row, same shape.
    """
    size = lengths(cotangents)
    unit = (cotangents / torch.where(size == 0, 1.0, size)).to(cotangents.dtype)
    pulled = (unit @ weight.detach()) * slope
    value, slopes = deviation(lengths(pulled), (size != 0).to(size.dtype))
    pushed = pulled * slopes.to(pulled.dtype) * slope
    return Part(value, ((weight, outer(unit, pushed)),), (size != 0).sum())


def sweep(weight: Tensor, slope: Tensor, injected: Tensor) -> Tensor:
    """dC/dx_t for every step.

    Args:
        weight: W (features, features).
        slope: s'(x_t), (steps, samples, features).
        injected: the part of dC/dh_t that does not come through h_{t+1}, same shape.
    """
    wide = weight.detach()
    cotangents = torch.empty_like(injected)
    later = injected[-1] * slope[-1]
    cotangents[-1] = later
    for step in range(len(injected) - 2, -1, -1):
        later = torch.addmm(injected[step], later, wide) * slope[step]
        cotangents[step] = later
    return cotangents


def in_range(cotangents: Tensor, weight: Tensor, slope: Tensor, injected: Tensor) -> Tensor:
    """The cotangents, each row in a scale of its own where some left the range: Omega needs directions only."""
    size = cotangents.abs().amax(-1)
    lost = (size > 0) & (size < _LOST)
    if not bool(lost.any()) and bool(torch.isfinite(size).all()):
        return cotangents
    return _renormalised(weight.detach(), slope, injected)


def _renormalised(weight: Tensor, slope: Tensor, injected: Tensor) -> Tensor:
    """The sweep with each row brought near 1 at every step, its power of 2 kept apart."""
    cotangents = torch.empty_like(injected)
    later = torch.zeros_like(injected[0])
    power = torch.full_like(later[:, :1], -torch.inf)  # what arrived is later * 2^power
    for step in range(len(injected) - 1, -1, -1):
        fresh, fresh_power = _near_one(injected[step])
        common = torch.maximum(power, fresh_power)
        base = common.masked_fill(common == -torch.inf, 0.0)
        passed = later @ weight
        total = (passed * torch.exp2(power - base) + fresh * torch.exp2(fresh_power - base)) * slope[step]
        later, grown = _near_one(total)
        power = grown + base
        cotangents[step] = later
    return cotangents


def _near_one(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows divided by a power of 2 so that the largest element is in [0.5, 1), and the power; -inf for 0."""
    largest = rows.abs().amax(-1, keepdim=True)
    _, exponent = torch.frexp(largest)
    power = exponent.to(rows.dtype)
    halved = power / 2  # 2^-power itself may be out of range where the row is subnormal
    scaled = rows * torch.exp2(-halved.floor()) * torch.exp2(-halved.ceil())
    return scaled, power.masked_fill(largest == 0, -torch.inf)
