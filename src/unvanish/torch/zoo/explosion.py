"""Signals and gradients that grow from layer to layer or from step to step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import characters, digits, remembered, table, vocabulary

# mypy: disable-error-code="no-any-return"


class ReluNet(nn.Module):
    """Deep ReLU net with weights drawn by hand."""

    def __init__(self, depth: int, std: float, width: int = 48) -> None:
        super().__init__()
        self.inp = nn.Linear(64, width)
        self.hidden = nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)])
        self.out = nn.Linear(width, 10)
        for m in self.hidden.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0.0, std)
                nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(F.relu(self.inp(x))))


@sick(
    "exploding",
    r"hidden|inp|out",
    why="Twelve ReLU layers with weights from N(0, 1) grow fivefold each.",
    accept=("initialization",),
)
def relu_standard_normal(ill: bool) -> Program:
    model = ReluNet(12, 1.0 if ill else (2 / 48) ** 0.5)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())


@sick("exploding", r"^\d+$", why="Leaky ReLU layers at gain 3 through 20 layers.", accept=("initialization",))
def leaky_gain_three(ill: bool) -> Program:
    layers: list[nn.Module] = [nn.Linear(30, 32), nn.LeakyReLU(0.2)]
    for _ in range(20):
        layers += [nn.Linear(32, 32), nn.LeakyReLU(0.2)]
    model = nn.Sequential(*layers, nn.Linear(32, 2))
    for m in list(model)[:-1]:
        if isinstance(m, nn.Linear):
            nn.init.orthogonal_(m.weight, 3.0 if ill else 1.38)
    return Program(model, table("breast_cancer"), torch.optim.SGD(model.parameters(), lr=0.05), nn.CrossEntropyLoss())


class ReluRNN(nn.Module):
    """nn.RNN with relu and a recurrent matrix of a given spectral radius."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 32, nonlinearity="relu", batch_first=True)
        self.fc = nn.Linear(32, 8)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, radius)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc(out[:, -1])


@sick("exploding", "rnn", why="A recurrent ReLU matrix of radius 3 over 40 steps.", accept=("recurrent-depth",))
def rnn_radius_three(ill: bool) -> Program:
    model = ReluRNN(3.0 if ill else 0.9)
    return Program(model, remembered(40, 37), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class LinearFlow(nn.Module):
    """A deep linear encoder and a softmax classifier."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(16)])
        self.classifier = nn.Linear(64, 10)
        for layer in self.encoder:
            nn.init.xavier_uniform_(layer.weight, gain=gain)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(x))


@sick("exploding", "encoder", why="Sixteen linear layers at gain 2.5 grow by two million.", accept=("initialization",))
def linear_gain(ill: bool) -> Program:
    model = LinearFlow(2.5 if ill else 1.0)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.005), F.cross_entropy)


class LoopedRNN(nn.Module):
    """A hand-written residual recurrence: h <- relu(W h + U x)."""

    def __init__(self, diagonal: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(vocabulary()), 32)
        self.recurrent = nn.Linear(32, 32)
        self.decoder = nn.Linear(32, len(vocabulary()))
        with torch.no_grad():
            self.recurrent.weight.add_(diagonal * torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 32)
        outputs = []
        for token in self.embed(x).unbind(1):
            h = F.relu(self.recurrent(h) + token)
            outputs.append(self.decoder(h))
        return torch.stack(outputs, -1)


@sick(
    "exploding",
    "recurrent",
    why="A recurrence with 1.8 on its diagonal doubles 40 times.",
    accept=("recurrent-depth",),
    holdout=True,
)
def looped_rnn(ill: bool) -> Program:
    model = LoopedRNN(1.8 if ill else 0.0)
    return Program(model, characters(32, 40), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class DeepConv(nn.Module):
    """Ten convolutions initialised as if fan_in were one."""

    def __init__(self, std: float) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for i in range(10):
            blocks += [nn.Conv2d(1 if i == 0 else 12, 12, 3, padding=1), nn.ELU()]
        self.trunk = nn.Sequential(*blocks)
        self.head = nn.Linear(12 * 64, 10)
        for m in self.trunk:
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).flatten(1))


@sick(
    "exploding",
    "trunk",
    why="Convolutions drawn from N(0, 0.7) with a fan-in of 108 grow sixfold each.",
    accept=("initialization",),
    holdout=True,
)
def conv_normal(ill: bool) -> Program:
    model = DeepConv(0.7 if ill else 0.11)
    return Program(
        model, digits(32, image=True), torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), nn.CrossEntropyLoss()
    )
