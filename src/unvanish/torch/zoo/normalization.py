"""Normalisation over too little, or missing where a residual stream needs it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import column, digits, remembered, table

# mypy: disable-error-code="no-any-return"


def norm_mlp(depth: int, norm: bool = True) -> nn.Sequential:
    """``depth`` x (Linear, BatchNorm1d, ReLU) and a head, for the digits."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64, 48) if i == 0 else nn.Linear(48, 48)]
        layers += [nn.BatchNorm1d(48) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(48, 10))


@sick("normalization", r"^\d+$", why="BatchNorm over a batch of two leaves the sign of each feature and no gradient.")
def batchnorm_of_two(ill: bool) -> Program:
    model = norm_mlp(4)
    batches = digits(2, 60) if ill else digits(32, 60)
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class Regressor(nn.Module):
    """An MLP with one output that someone wanted to be normalised too."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 64)
        self.fc2 = nn.Linear(64, 64)
        self.out = nn.Linear(64, 1)
        self.norm = nn.LayerNorm(1) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.norm(self.out(x))


@sick("normalization", "norm", why="LayerNorm over the single output makes every prediction equal to its bias.")
def layernorm_of_one(ill: bool) -> Program:
    model = Regressor(norm=ill)
    batches = column(table("diabetes"))
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss())


class GroupNormNet(nn.Module):
    """A conv net that pools to 1x1 and normalises then."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.gn = nn.GroupNorm(groups, 32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gn(self.pool(self.features(x))).flatten(1))


@sick("normalization", "gn", why="GroupNorm with 32 groups of one channel on 1x1 maps gives zeros for any image.")
def groupnorm_of_one(ill: bool) -> Program:
    model = GroupNormNet(32 if ill else 4)
    return Program(model, digits(image=True), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        for fc in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.relu(self.fc1(self.norm(x))))


class ResMLP(nn.Module):
    """Pre-norm residual MLP, or one whose norms were forgotten."""

    def __init__(self, depth: int, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 48)
        self.blocks = nn.ModuleList(Block(48, norm) for _ in range(depth))
        self.norm = nn.LayerNorm(48) if norm else nn.Identity()
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@sick(
    "normalization",
    r"blocks\.",
    why="Thirty He-initialised residual blocks without a norm: the stream explodes.",
    accept=("exploding",),
)
def residual_without_norm(ill: bool) -> Program:
    model = ResMLP(30, norm=not ill)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.02), nn.CrossEntropyLoss())


@sick(
    "normalization",
    r"^\d+$",
    why="BatchNorm in a plain 50-layer ReLU net multiplies the gradient by 1.2 a layer.",
    accept=("exploding", "depth"),
)
def batchnorm_plain_fifty(ill: bool) -> Program:
    model = norm_mlp(50 if ill else 4)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.02), nn.CrossEntropyLoss())


class SeriesTransformer(nn.Module):
    """Embeds one value per time step; the LayerNorm before the embedding sees a single number."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(1) if norm else nn.Identity()
        self.embed = nn.Linear(1, 32)
        self.position = nn.Parameter(0.1 * torch.randn(13, 32))
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), 1, enable_nested_tensor=False
        )
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.input_norm(x.unsqueeze(-1))) + self.position
        return self.head(self.encoder(x).mean(1))


@sick("normalization", "input_norm", why="LayerNorm(1) on each scalar of the series erases the input.", holdout=True)
def layernorm_erases_series(ill: bool) -> Program:
    model = SeriesTransformer(norm=ill)
    return Program(model, table("wine", 32), torch.optim.AdamW(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())


class PairHead(nn.Module):
    """A recurrent encoder and a BatchNorm head, trained with tiny batches."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 32, batch_first=True)
        self.bn1 = nn.BatchNorm1d(32)
        self.fc1 = nn.Linear(32, 32)
        self.bn2 = nn.BatchNorm1d(32)
        self.fc2 = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        x = F.relu(self.fc1(self.bn1(out[:, -1])))
        return self.fc2(self.bn2(x))


@sick(
    "normalization",
    "bn",
    why="Two sequences a batch and BatchNorm in the head: no gradient reaches the GRU.",
    holdout=True,
)
def batchnorm_pair_head(ill: bool) -> Program:
    batches = remembered(10, 5, batch=2 if ill else 32, count=60)
    model = PairHead()
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), F.cross_entropy)
