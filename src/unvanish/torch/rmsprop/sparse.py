"""Sparse gradients: the same result as the dense gradient they stand for, at the cost of the rows they have."""

from __future__ import annotations

import torch
from torch import Tensor

from unvanish.torch.rmsprop.eager import count
from unvanish.torch.rmsprop.formula import Numbers, Values, guarded_
from unvanish.torch.rmsprop.settings import Settings
from unvanish.torch.rmsprop.slots import Slot


def by_rows(g: Tensor, s: Settings) -> bool:
    """Whether rows without gradient stay where they are, so that only the others need an update.

    Momentum, a moving mean and weight decay move every row.
    """
    moves_all = s.momentum or s.centered or s.weight_decay or s.differentiable or s.capturable
    return g.layout is torch.sparse_coo and g.sparse_dim() == 1 and not moves_all and not g.is_complex()


def step(slot: Slot, s: Settings, lr: float | Tensor, scale: float | Tensor) -> int:
    """Update the rows in the gradient; the average of the others decays, as with a gradient of zero."""
    rows = slot.g.indices()[0]
    values = Values(slot.p.index_select(0, rows), slot.v.index_select(0, rows), None, None)
    bad = guarded_(values, slot.g.values(), s, Numbers(lr, scale, s.rho, s.eps, slot.correction))
    slot.v.mul_(s.rho)
    slot.p.index_copy_(0, rows, values.p)
    slot.v.index_copy_(0, rows, values.v)
    return count(slot, bad)
