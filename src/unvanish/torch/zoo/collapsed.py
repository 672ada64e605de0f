"""Losses that compare samples with one another: outputs that become all alike, and outputs that find their places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick, well
from unvanish.torch.zoo._data import digits

# mypy: disable-error-code="no-any-return"


class Embedding(nn.Module):
    """Digits as points in sixteen dimensions."""

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 16),
        )  # fmt: skip
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        points = self.net(x)
        return F.normalize(points, dim=-1) if self.normalize else points


def _distances(points: Tensor) -> Tensor:
    return (points[:, None] - points[None]).square().sum(-1).add(1e-9).sqrt()


def _noisy() -> list[tuple[Tensor, Tensor]]:
    """Dark images with noise, none of them twice."""
    return [(0.375 * x + 0.35 * torch.randn_like(x) + 0.3, y) for x, y in digits(count=40, image=True)]


@sick("loss-mismatch", "loss", why="The hardest pairs of each batch are pulled apart by making all pairs alike.")
def triplets_collapse(ill: bool) -> Program:
    model = Embedding()

    def loss(points: Tensor, label: Tensor) -> Tensor:
        apart, same = _distances(points), label[:, None] == label[None]
        positive = apart.masked_fill(~same, 0.0).amax(1)
        negative = apart.masked_fill(same, 1e9).amin(1)
        gap = positive - negative
        return F.relu((gap if ill else gap / negative.mean()) + 0.5).mean()

    return Program(model, _noisy(), torch.optim.Adam(model.parameters(), lr=3e-3), loss)


@well("Triplets of all pairs on normalised points, whose loss falls slowly.")
def triplets_of_all_pairs() -> Program:
    model = Embedding(normalize=True)

    def loss(points: Tensor, label: Tensor) -> Tensor:
        apart, same = _distances(points), label[:, None] == label[None]
        return F.relu(
            apart.where(same, 0.0).sum(1) / same.sum(1) - apart.where(~same, 0.0).sum(1) / (~same).sum(1) + 0.5
        ).mean()

    return Program(model, _noisy(), torch.optim.Adam(model.parameters(), lr=1e-3), loss)
