"""Plain nets whose weights are critical, and which are still too deep: the directions of the signal collapse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import digits

# mypy: disable-error-code="no-any-return"


class Plain(nn.Module):
    """A stack of equal layers, or the same stack with a skip past each (scaled by 1/depth)."""

    def __init__(
        self, depth: int, activation: nn.Module, inputs: int, classes: int, skip: bool, width: int = 32
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.act = activation
        self.head = nn.Linear(width, classes)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            update = self.act(layer(x))
            x = x + update / len(self.layers) if self.skip else update
        return self.head(x)


@sick("depth", r"layers\.|act", why="A hundred He-initialised ReLU layers: every sample comes out the same.")
def relu_he_hundred(ill: bool) -> Program:
    model = Plain(100, nn.ReLU(), 64, 10, skip=not ill)
    for layer in model.layers:
        assert isinstance(layer, nn.Linear)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())


@sick(
    "depth",
    r"layers\.|act",
    why="At gain 0.95 a tanh layer is nearly critical, but 300 of them lose e^-16.",
    accept=("initialization",),
)
def tanh_three_hundred(ill: bool) -> Program:
    model = Plain(300, nn.Tanh(), 64, 10, skip=not ill)
    for layer in model.layers:
        assert isinstance(layer, nn.Linear)
        nn.init.orthogonal_(layer.weight, 0.95)
        nn.init.zeros_(layer.bias)
    return Program(model, digits(32), torch.optim.SGD(model.parameters(), lr=0.05), F.cross_entropy)


@sick("depth", r"^\d+$", why="Tanh at Xavier's gain 1 through 120 layers leaves one direction of the gradient.")
def tanh_xavier_plain(ill: bool) -> Program:
    depth = 120 if ill else 8
    layers: list[nn.Module] = [nn.Linear(64, 32), nn.Tanh()]
    for _ in range(depth):
        layers += [nn.Linear(32, 32), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.xavier_normal_(m.weight)
            nn.init.zeros_(m.bias)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.05), nn.CrossEntropyLoss())


class PlainCNN(nn.Module):
    """Sixty 3x3 convolutions without skip or norm, or a few of them."""

    def __init__(self, depth: int, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.body = nn.Sequential(
            *[nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()) for _ in range(depth)]
        )
        self.fc = nn.Linear(channels * 64, 10)
        for m in self.modules():
            if isinstance(m, nn.Conv2d) and m.bias is not None:
                nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(F.relu(self.stem(x))).flatten(1))


@sick(
    "depth", r"body", why="Sixty He-initialised convolutions in a plain row.", accept=("initialization",), holdout=True
)
def conv_sixty(ill: bool) -> Program:
    model = PlainCNN(60 if ill else 4)
    return Program(model, digits(32, image=True), torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())
