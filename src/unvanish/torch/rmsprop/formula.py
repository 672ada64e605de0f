"""One RMSprop update as operations of PyTorch, in place: any device, any shape, and autograd can follow it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unvanish.torch.rmsprop.settings import Settings

# Largest gradient taken as it is. Its square stays finite, and so one gradient of 1e20 does not freeze an entry for
# ever with v = inf: v recovers as it would in exact arithmetic.
LIMITS = {torch.float32: 2.0**63, torch.float64: 2.0**511}


class Values(NamedTuple):
    """What an update reads and writes: parameter, average square, average gradient, momentum buffer."""

    p: Tensor
    v: Tensor
    m: Tensor | None
    b: Tensor | None

    def clone(self) -> Values:
        """Copies in memory of their own."""
        return Values(*(None if tensor is None else tensor.clone() for tensor in self))  # type: ignore[arg-type]


class Numbers(NamedTuple):
    """What an update multiplies by, beside the settings of its group."""

    lr: float | Tensor
    scale: float | Tensor  # of the gradient: clipping, and -1 where the user maximizes
    rho: float | Tensor
    eps: float | Tensor
    correction: float | Tensor = 1.0  # of the averages, 1 / (1 - rho^t), where the user wants it


def advance_(values: Values, g: Tensor, s: Settings, n: Numbers, room: Tensor | None = None) -> None:
    """Update with gradients within ``LIMITS``; ``room`` is memory like v for the denominator."""
    v = values.v
    p = values.p if values.p.dtype is v.dtype else values.p.to(v.dtype)  # of half precision
    g = g if g.dtype is v.dtype else g.to(v.dtype)
    g = g if isinstance(n.scale, float) and n.scale == 1 else g * n.scale
    if s.weight_decay and s.decoupled_weight_decay:
        p.mul_(1 - n.lr * s.weight_decay)
    elif s.weight_decay:
        g = g.add(p, alpha=s.weight_decay)
    v.mul_(n.rho).addcmul_(g, g, value=1 - s.rho)
    d = _denominator(values, g, s, n, room)
    if not s.momentum:
        _add_quotient(p, -n.lr, g, d)
    else:
        assert values.b is not None, "made with the slot"
        _add_momentum(p, values.b, g, d, s, n.lr)
    if p is not values.p:
        values.p.copy_(p)


def _denominator(values: Values, g: Tensor, s: Settings, n: Numbers, room: Tensor | None) -> Tensor:
    d, m, correction = values.v, values.m, n.correction
    if s.bias_correction:
        d = d * correction
    if s.centered:
        assert m is not None, "made with the slot"
        m.mul_(n.rho).add_(g, alpha=1 - s.rho)
        m = m * correction if s.bias_correction else m
        d = torch.maximum(d - m * m, rounding_floor(d.dtype, s.rho) * d)
    if s.eps_inside:
        return torch.add(d, n.eps, out=room).sqrt_()
    return torch.add(torch.sqrt(d, out=room), n.eps, out=room)


def _add_momentum(p: Tensor, b: Tensor, g: Tensor, d: Tensor, s: Settings, lr: float | Tensor) -> None:
    in_buffer, after = (lr, 1.0) if s.lr_in_momentum else (1.0, lr)
    _add_quotient(b.mul_(s.momentum), in_buffer, g, d)
    if s.nesterov:
        _add_quotient(p, -lr, g, d)
        after = after * s.momentum
    p.sub_(b * after if isinstance(after, Tensor) or after != 1 else b)


def _add_quotient(target: Tensor, factor: float | Tensor, g: Tensor, d: Tensor) -> None:
    if isinstance(factor, Tensor):
        target.add_(g / d * factor)
    else:
        target.addcdiv_(g, d, value=factor)


def rounding_floor(dtype: torch.dtype, rho: float) -> float:
    """Least variance, as a share of the average square.

    A running average stands still when its step (1 - rho)(x - average) is below half a unit in the last place, so it
    is known to about ulp / (1 - rho); a smaller difference v - m^2 is rounding, and may be negative.
    """
    return torch.finfo(dtype).eps / (1 - rho)


def guarded_(values: Values, g: Tensor, s: Settings, n: Numbers) -> Tensor:
    """Update with any gradients: entries with a non-finite one have no part; returns which those are."""
    limit = LIMITS[values.v.dtype]
    bad = ~g.isfinite()
    new = values.clone()
    g = torch.where(bad, 0.0, g).to(new.v.dtype)
    g = g if isinstance(n.scale, float) and n.scale == 1 else g * n.scale  # what is clipped may be within the limit
    advance_(new, g.clamp(-limit, limit), s, n._replace(scale=1.0))
    for old, value in zip(values, new, strict=True):
        if old is not None and value is not None:
            old.copy_(torch.where(bad, old, value))
    return bad
