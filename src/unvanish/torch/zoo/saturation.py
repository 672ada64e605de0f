"""Units really driven into the flat ends of tanh and sigmoid by weights or biases."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import digits, table

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
