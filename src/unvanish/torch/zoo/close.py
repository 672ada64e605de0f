"""Logits that lie too close together for a sure answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import digits

# mypy: disable-error-code="no-any-return"


class Cosines(nn.Module):
    """A classifier by the angle between what it sees and one direction for each class."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.directions = nn.Parameter(torch.randn(10, 32))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        cosines = F.normalize(self.body(x)) @ F.normalize(self.directions).T
        return cosines if self.scale == 1 else self.scale * cosines


@sick("loss-mismatch", "loss", why="Cosines lie in [-1, 1]: without a scale no answer can be sure.")
def cosines_as_logits(ill: bool) -> Program:
    model = Cosines(1.0 if ill else 16.0)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class Tempered(nn.Module):
    """A classifier whose logits are softened by a temperature, as for distillation."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
        self.head = nn.Linear(64, 10)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) / self.temperature


@sick(
    "loss-mismatch",
    "loss",
    "head",
    why="A temperature of 100 leaves neither distances nor gradient.",
    accept=("learning-rate-low",),
)
def hot_temperature(ill: bool) -> Program:
    model = Tempered(100.0 if ill else 1.0)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), nn.CrossEntropyLoss())
