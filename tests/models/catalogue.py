"""Where the models of this folder are registered: name -> seed -> program, all healthy as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unvanish.torch.zoo import Program
from unvanish.torch.zoo._case import seeded

PROGRAMS: dict[str, Callable[[int], Program]] = {}


def program(builder: Callable[[], Program]) -> Callable[[], Program]:
    """Register a builder under its own name."""
    PROGRAMS[builder.__name__] = seeded(builder)
    return builder


def adam(model: torch.nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr)
