"""Number formats too coarse or too narrow for the update, the gradient or the signal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import Batches, digits, pixels, table

# mypy: disable-error-code="no-any-return"


def pretrained(model: nn.Module, batches: Batches) -> nn.Module:
    """The model after 40 ordinary steps in float32."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for x, y in (batches * 40)[:40]:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def cast(batches: Batches, dtype: torch.dtype) -> Batches:
    """Inputs in the model's format."""
    return [(x.to(dtype), y) for x, y in batches]


def mlp(depth: int, width: int = 128) -> nn.Sequential:
    """A ReLU MLP in He's initialisation."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64 if i == 0 else width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return model


@sick(
    "precision",
    r".",
    why="Fine-tuning in bfloat16 with Adam at 5e-5: nine of ten weights round back.",
    accept=("learning-rate-low",),
)
def bfloat16_fine_tuning(ill: bool) -> Program:
    dtype = torch.bfloat16 if ill else torch.float32
    batches = digits()
    model = pretrained(mlp(6), batches).to(dtype)
    shifted = [(x.view(-1, 8, 8).roll(1, 2).flatten(1), y) for x, y in batches]
    return Program(model, cast(shifted, dtype), torch.optim.Adam(model.parameters(), lr=5e-5), F.cross_entropy)


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)
        nn.init.orthogonal_(self.fc.weight, 1.4)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.fc(self.norm(x)))


@sick(
    "precision",
    r".",
    why="Training from scratch in bfloat16 with Adam at 1e-4: four of five weights round back.",
    accept=("learning-rate-low",),
)
def bfloat16_residual(ill: bool) -> Program:
    dtype = torch.bfloat16 if ill else torch.float32
    model = nn.Sequential(nn.Linear(64, 128), *[Block(128) for _ in range(8)], nn.LayerNorm(128), nn.Linear(128, 10))
    nn.init.normal_(model[0].weight, std=0.5)  # type: ignore[arg-type]
    nn.init.normal_(model[-1].weight, std=0.25)  # type: ignore[arg-type]
    model = model.to(dtype)
    return Program(model, cast(digits(), dtype), torch.optim.Adam(model.parameters(), lr=1e-4), nn.CrossEntropyLoss())


class Autoencoder(nn.Module):
    """tanh autoencoder, its input in its own format."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32))
        self.decoder = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@sick("precision", r".", why="float16 autocast without a GradScaler and a loss weight of 1e-5: gradients are 0.")
def autocast_without_scaler(ill: bool) -> Program:
    model = Autoencoder()

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=ill):
            rebuilt = net(batch[0])
            return 1e-5 * F.mse_loss(rebuilt, batch[0].to(rebuilt.dtype))

    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=5e-3), objective=objective)


@sick(
    "precision",
    r".",
    why="model.half() with Adam: its eps of 1e-8 is 0 in float16, the first step divides 0/0.",
    accept=("non-finite",),
)
def half_adam_eps(ill: bool) -> Program:
    dtype = torch.float16 if ill else torch.float32
    model = mlp(2, 64).to(dtype)
    return Program(model, cast(pixels(), dtype), torch.optim.Adam(model.parameters(), lr=2e-3), nn.CrossEntropyLoss())


class EnergyNet(nn.Module):
    """Adds the energy of the hidden signal to the features."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(13, 64)
        self.fc2 = nn.Linear(65, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc1(x))
        energy = (50 * h).pow(2).sum(1, keepdim=True)
        return self.fc2(torch.cat([h, torch.log1p(energy)], 1))


@sick(
    "precision",
    r"energy|pow|sum|fc1|mul",
    "input",
    why="A sum of squares passes 65504, the largest float16.",
    accept=("non-finite",),
    holdout=True,
)
def half_overflow(ill: bool) -> Program:
    dtype = torch.float16 if ill else torch.float32
    model = EnergyNet().to(dtype)
    batches = cast(table("wine", 32), dtype)
    return Program(model, batches, torch.optim.SGD(model.parameters(), lr=0.02), nn.CrossEntropyLoss())


class ConvNet(nn.Module):
    """Two convolutions and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.fc = nn.Linear(32 * 16, 10)
        for layer in (self.conv1, self.conv2, self.fc):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.gelu(self.conv2(F.gelu(self.conv1(x)))).flatten(1))


@sick(
    "precision",
    r".",
    why="A conv net fine-tuned on darker images as bfloat16 with AdamW at 5e-5 stays where it was.",
    accept=("learning-rate-low",),
    holdout=True,
)
def bfloat16_conv(ill: bool) -> Program:
    dtype = torch.bfloat16 if ill else torch.float32
    batches = digits(image=True)
    model = pretrained(ConvNet(), batches).to(dtype)
    darker = [(0.3 * x - 1, y) for x, y in batches]
    return Program(model, cast(darker, dtype), torch.optim.AdamW(model.parameters(), lr=5e-5), nn.CrossEntropyLoss())
