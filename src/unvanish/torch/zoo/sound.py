"""Everyday programs that learn, some of which look ill to a simple monitor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, well
from unvanish.torch.zoo._data import column, digits, table

# mypy: disable-error-code="no-any-return"


class MLP(nn.Module):
    """The MLP of every tutorial."""

    def __init__(self, inputs: int = 64, hidden: int = 64, outputs: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


@well("An ordinary MLP.")
def plain_mlp() -> Program:
    model = MLP()
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@well("Converged: the gradients are tiny because the loss is.")
def converged() -> Program:
    model = MLP(30, 32, 2)
    batches = table("breast_cancer", 64, 9)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for x, y in (batches * 14)[:120]:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())


class PINN(nn.Module):
    """u(t) for a differential equation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, t: Tensor) -> Tensor:
        return self.net(t)


@well("A physics-informed net: u' = -u, u(0) = 1, with autograd.grad inside the objective.")
def pinn() -> Program:
    model = PINN()

    def objective(net: nn.Module, t: Tensor) -> Tensor:
        t = t.clone().requires_grad_(True)
        u = net(t)
        (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        start = net(torch.zeros(1, 1)) - 1
        return (du + u).pow(2).mean() + 10 * start.pow(2).mean()

    batches = [3 * torch.rand(64, 1) for _ in range(12)]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), objective=objective)


@well("Batch size 1 with LayerNorm: noisy, no statistics over the batch, and it learns.")
def batch_of_one() -> Program:
    model = nn.Sequential(
        nn.Linear(30, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 2)
    )
    return Program(model, table("breast_cancer", 1, 60), torch.optim.SGD(model.parameters(), lr=0.02), F.cross_entropy)


@well("A regression on standardised features and target.")
def regression() -> Program:
    model = MLP(10, 64, 1)
    return Program(model, column(table("diabetes")), torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss())


class Sine(nn.Module):
    """sin(30 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


@well("SIREN: sin(30 x) layers with their own initialisation fit an image.", holdout=True)
def siren() -> Program:
    model = nn.Sequential(nn.Linear(2, 64), Sine(), nn.Linear(64, 64), Sine(), nn.Linear(64, 1))
    nn.init.uniform_(model[0].weight, -0.5, 0.5)  # type: ignore[arg-type]
    bound = (6 / 64) ** 0.5 / 30
    for i in (2, 4):
        nn.init.uniform_(model[i].weight, -bound, bound)  # type: ignore[arg-type]
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij"), -1).view(
        64, 2
    )
    image = digits(1, 1)[0][0].view(64, 1)
    batches = [(grid[i], image[i]) for i in (torch.randperm(64)[:48] for _ in range(12))]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-3), nn.MSELoss())


@well("Ten SELU layers with LeCun init normalise themselves.")
def selu_ten() -> Program:
    layers: list[nn.Module] = []
    for i in range(10):
        layers += [nn.Linear(64 if i == 0 else 48, 48), nn.SELU()]
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.05), nn.CrossEntropyLoss())


@well("Raw inputs up to 1680, but BatchNorm comes first: the scale is harmless.")
def batchnorm_first() -> Program:
    model = nn.Sequential(nn.BatchNorm1d(13), nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 3))
    return Program(model, table("wine", 32, raw=True), torch.optim.Adam(model.parameters(), lr=1e-2), F.cross_entropy)


@well("LogSoftmax in the model with NLLLoss: the right pair.")
def logsoftmax_nll() -> Program:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.LogSoftmax(dim=1))
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.3), nn.NLLLoss())


@well("log_softmax before CrossEntropyLoss is idempotent, so it does no harm.", holdout=True)
def logsoftmax_cross_entropy() -> Program:
    model = nn.Sequential(nn.Linear(13, 32), nn.ELU(), nn.Linear(32, 3), nn.LogSoftmax(dim=-1))
    return Program(model, table("wine", 32), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


@well("Sigmoid output with BCELoss: the right pair.", holdout=True)
def sigmoid_bce() -> Program:
    model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
    return Program(model, column(table("breast_cancer")), torch.optim.Adam(model.parameters(), lr=3e-3), nn.BCELoss())


@well("A linear model, all of whose weights start at zero: convex, so zero is a fine start.", holdout=True)
def linear_zero_start() -> Program:
    model = nn.Linear(64, 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy)


@well("Dropout of a half: half of the units are zero in every pass.")
def dropout_net() -> Program:
    model = nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())
