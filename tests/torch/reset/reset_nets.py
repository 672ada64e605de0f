"""Networks with one unit that is dead or saturated, in float64, for the tests of UnitReset."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEAD = -1e3  # a bias no input of these tests can lift


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ConvFlatten(nn.Module):
    """Convolution with 3 channels of 2 x 2 places -> flatten -> linear; channel 1 is dead."""

    def __init__(self, *, channels_last: bool = False) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 2), nn.Linear(12, 4)
        self.last = nn.Linear(4, 2)
        self.channels_last = channels_last
        with torch.no_grad():
            self.conv.bias[1] = DEAD

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x))
        h = h.permute(0, 2, 3, 1) if self.channels_last else h
        return self.last(torch.relu(self.head(h.flatten(1)) + 5))


class ResidualMLP(nn.Module):
    def __init__(self, activation: nn.Module | None = None, norm: bool = False) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)
        self.norm = nn.LayerNorm(6) if norm else nn.Identity()
        self.activation = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(h + self.outer(self.activation(self.inner(self.norm(h)))))


class ResNetLike(nn.Module):
    """Two blocks: conv-norm-relu-conv-norm plus skip, then mean over places and a head."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "conv1": nn.Conv2d(4, 6, 3, padding=1, bias=False),
                    "norm1": nn.BatchNorm2d(6),
                    "conv2": nn.Conv2d(6, 4, 3, padding=1, bias=False),
                    "norm2": nn.BatchNorm2d(4),
                }
            )
            for _ in range(2)
        )
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for block in self.blocks:
            h = self.relu(block["norm1"](block["conv1"](x)))
            x = self.relu(x + block["norm2"](block["conv2"](h)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class TransformerBlock(nn.Module):
    """Pre-norm attention and Linear-GELU-Linear, as users write it."""

    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, 16), nn.Linear(16, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(self.norm2(x))))))


def plain(*widths: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
        if bias:
            nn.init.constant_(layers[-2].bias, 0.5)  # no unit is dead by chance
    return nn.Sequential(*layers[:-1])
