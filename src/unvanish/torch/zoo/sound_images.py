"""Deep networks for images that learn: skips, norms and unusual layouts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, well
from unvanish.torch.zoo._data import digits, pixels

# mypy: disable-error-code="no-any-return"


class UNet(nn.Module):
    """One level of a U-Net that removes noise."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 12, 3, padding=1)
        self.down2 = nn.Conv2d(12, 24, 3, padding=1)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.fuse = nn.Conv2d(24, 12, 3, padding=1)
        self.out = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        return self.out(F.relu(self.fuse(torch.cat([a, self.up(b)], 1))))


@well("A U-Net with skips by concatenation.", holdout=True)
def unet() -> Program:
    model = UNet()
    batches = [(x + 0.5 * torch.randn_like(x), x) for x, _ in digits(32, image=True)]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss())


class BasicBlock(nn.Module):
    """ResNet's block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(x + self.bn2(self.conv2(out)), inplace=True)


@well("A small ResNet with zero-initialised last BatchNorm gammas and biases before BatchNorm of no effect.")
def resnet() -> Program:
    stem = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    model = nn.Sequential(
        *stem, *[BasicBlock(12) for _ in range(4)], nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(48, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return Program(model, digits(image=True), optimizer, nn.CrossEntropyLoss())


class PreNormBlock(nn.Module):
    """x + W2 gelu(W1 norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


@well("Forty pre-norm residual blocks: deep, and fine.")
def prenorm_forty() -> Program:
    model = nn.Sequential(
        nn.Linear(64, 48), *[PreNormBlock(48) for _ in range(40)], nn.LayerNorm(48), nn.Linear(48, 10)
    )
    return Program(model, digits(32), torch.optim.AdamW(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())


class DepthwiseNet(nn.Module):
    """MobileNet-like conv net with GroupNorm and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.norm = nn.GroupNorm(4, 32)
        self.fc = nn.Linear(32 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = F.silu(self.norm(self.pointwise(self.depthwise(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


@well("Depthwise convolutions and GroupNorm, trained with channels_last images.", holdout=True)
def depthwise_groupnorm() -> Program:
    model = DepthwiseNet()
    batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in digits(image=True)]
    return Program(model, batches, torch.optim.RMSprop(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


def convolutions(before: int, after: int) -> nn.Sequential:
    """Two with their ReLU, PyTorch's own weights and no norm."""
    first, second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))


class PlainUNet(nn.Module):
    """Two levels; what goes around them is put beside what comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = convolutions(1, 8), convolutions(8, 16), convolutions(16, 16)
        self.up2, self.join2 = nn.ConvTranspose2d(16, 16, 2, 2), convolutions(32, 8)
        self.up1, self.join1 = nn.ConvTranspose2d(8, 8, 2, 2), convolutions(16, 8)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(F.max_pool2d(fine, 2))
        y = self.join2(torch.cat([self.up2(self.bottom(F.max_pool2d(coarse, 2))), coarse], 1))
        return self.out(self.join1(torch.cat([self.up1(y), fine], 1)))


@well("A U-Net with PyTorch's weights and no norm: its layers lose five decades, and the skips go around them.")
def plain_unet() -> Program:
    model = PlainUNet()
    batches = [(x + 0.2 * torch.randn_like(x), (x > 0.5).float()) for x, _ in pixels(image=True)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Program(model, batches, optimizer, nn.BCEWithLogitsLoss())
