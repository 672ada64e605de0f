"""Units really driven into the flat ends of tanh and sigmoid by weights or biases."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import digits, pixels, table

# mypy: disable-error-code="no-any-return"


class TanhClassifier(nn.Module):
    """A plain tanh MLP."""

    def __init__(self, hidden: int = 64, depth: int = 6) -> None:
        super().__init__()
        sizes = [64] + [hidden] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


@sick("saturation", r"layers\.", "tanh", why="Hidden biases of 4 hold every tanh on its flat end.")
def tanh_bias_four(ill: bool) -> Program:
    model = TanhClassifier()
    for layer in model.layers:
        assert isinstance(layer, nn.Linear)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.constant_(layer.bias, 4.0 if ill else 0.0)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy)


@sick(
    "saturation",
    r"layers\.",
    "tanh",
    why="Weights drawn from N(0, 3) give pre-activations of +-25.",
    accept=("exploding",),
)
def tanh_normal_three(ill: bool) -> Program:
    model = TanhClassifier(depth=5)
    for layer in model.layers:
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=3.0 if ill else 0.125)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=2e-3), nn.CrossEntropyLoss())


@sick("saturation", r"^[45]$", why="One layer in the middle has a bias of 16: its sigmoids are all 1.")
def sigmoid_middle_layer(ill: bool) -> Program:
    model = nn.Sequential(
        nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 10)
    )
    with torch.no_grad():
        model[4].weight.mul_(4.0)  # type: ignore[operator]
        model[4].bias.fill_(16.0 if ill else 0.0)  # type: ignore[operator]
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class SparseAutoencoder(nn.Module):
    """Autoencoder whose code is a sigmoid, biased to be sparse."""

    def __init__(self, code_bias: float) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.Sigmoid())
        self.decoder = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 64))
        nn.init.constant_(self.encoder[2].bias, code_bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@sick(
    "saturation",
    r"encoder\.[23]",
    why="The code's bias of -20 holds every sigmoid of the bottleneck at 0.",
    holdout=True,
)
def sparse_autoencoder(ill: bool) -> Program:
    model = SparseAutoencoder(-20.0 if ill else 0.0)
    batches = [(x, x) for x, _ in table("digits")]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss())


class HandmadeSigmoids(nn.Module):
    """Sigmoid layers as a textbook writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = 1 / (1 + torch.exp(-layer(x)))
        return self.out(x)


@sick(
    "saturation",
    r"^first|^second",
    why="Weights of U(0, 1) drive sigmoids, written by hand, to 1.",
    accept=("initialization",),
)
def handmade_sigmoids(ill: bool) -> Program:
    model = HandmadeSigmoids()
    for layer in (model.first, model.second):
        if ill:
            nn.init.uniform_(layer.weight)
        else:
            nn.init.xavier_uniform_(layer.weight)
    return Program(model, pixels(), torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())


class Lookup(nn.Module):
    """The first row asks; the item that has its key answers, found by dot products."""

    def __init__(self, scale: float, keys: int = 8, classes: int = 6, width: int = 256) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(keys + classes, width), nn.Linear(keys + classes, width)
        self.value, self.out = nn.Linear(keys + classes, width), nn.Linear(width, classes)
        for part in (self.query, self.key):
            nn.init.normal_(part.weight)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        asked, items = x[:, 0], x[:, 1:]
        scores = self.scale * torch.einsum("bd,btd->bt", self.query(asked), self.key(items))
        return self.out(torch.einsum("bt,btd->bd", scores.softmax(-1), self.value(items)))


@sick(
    "saturation",
    r"^query|^key|softmax",
    why="Scores of standard deviation 60 and more are not divided by sqrt(d): each query sees one key.",
    accept=("initialization",),
)
def unscaled_scores(ill: bool) -> Program:
    model = Lookup(1.0 if ill else 1 / 256)
    keys = torch.stack([torch.randperm(8) for _ in range(768)])
    values, asked = torch.randint(6, (768, 8)), torch.randint(8, (768,))
    items = 2 * torch.cat([F.one_hot(keys, 8), F.one_hot(values, 6)], -1).float()
    picked = keys[torch.arange(768), asked]
    query = 2 * F.pad(F.one_hot(picked, 8), (0, 6)).float().unsqueeze(1)
    x, y = torch.cat([query, items], 1), values[torch.arange(768), asked]
    batches = list(zip(x.split(64), y.split(64), strict=True))
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class Kernels(nn.Module):
    """Radial basis functions around given centres, and a linear readout."""

    def __init__(self, centres: Tensor, width: float) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres)
        self.log_width = nn.Parameter(torch.full((len(centres),), width).log())
        self.readout = nn.Linear(len(centres), 10)

    def forward(self, x: Tensor) -> Tensor:
        squares = (x[:, None] - self.centres).square().sum(-1)
        return self.readout(torch.exp(-squares / (2 * self.log_width.exp() ** 2)))


@sick(
    "saturation",
    r"^exp$|:exp$",
    why="Kernels of width 0.5 among 64 pixels, whose distances are about 10: they put out next to nothing.",
    accept=("dead-units", "input-scale", "initialization"),
)
def narrow_kernels(ill: bool) -> Program:
    (around, _), *batches = digits(64, 10)
    model = Kernels(around + 0.3 * torch.randn_like(around), 0.5 if ill else 6.0)
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-2), F.cross_entropy)
