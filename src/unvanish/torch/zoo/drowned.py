"""A signal drowned by what is added to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import digits

# mypy: disable-error-code="no-any-return"


class Rows(nn.Module):
    """A Transformer over the eight rows of an image, with a fixed code for their places."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.register_buffer("places", size * torch.randn(8, 32))
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unflatten(1, (8, 8))) + self.places
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.head(F.layer_norm(x, (32,)).mean(1))


@sick("input-scale", "embed", why="The code of the places is a hundred times the size of what stands there.")
def code_drowns_rows(ill: bool) -> Program:
    model = Rows(60.0 if ill else 0.5)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())
