"""Units that start equal and therefore stay equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import digits, pixels

# mypy: disable-error-code="no-any-return"


def constant_(module: nn.Module, value: float) -> None:
    """The same number in every weight, zero in every bias."""
    for name, parameter in module.named_parameters():
        nn.init.constant_(parameter, 0.0 if "bias" in name else value)


class Net(nn.Module):
    """MLP with the activation of the user's choice."""

    def __init__(self, inputs: int = 64, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc2(F.relu(self.fc1(x)))))


@sick(
    "symmetry",
    "fc1",
    "fc2",
    "out",
    why="All weights start at zero: nothing passes in either direction.",
    accept=("initialization", "dead-units"),
)
def zero_weights(ill: bool) -> Program:
    model = Net()
    if ill:
        constant_(model, 0.0)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@sick("symmetry", r"^[024]$", why="All weights start at one constant: 64 units are one unit.")
def constant_weights(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    if ill:
        for layer in (model[0], model[2]):
            nn.init.constant_(layer.weight, 0.02)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.constant_(model[4].weight, 0.02)  # type: ignore[arg-type]
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class TiedRows(nn.Module):
    """A classifier whose units were copied from one prototype."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 64)
        self.middle = nn.Linear(64, 64)
        self.out = nn.Linear(64, 10)
        if copied:
            with torch.no_grad():
                for layer in (self.hidden, self.middle):
                    layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
                    layer.bias.fill_(0.1)
                self.out.weight.copy_(self.out.weight[:, :1].expand_as(self.out.weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.middle(torch.tanh(self.hidden(x)))))


@sick("symmetry", "hidden", "middle", "out", why="All rows of the hidden layers are copies of the first.")
def copied_rows(ill: bool) -> Program:
    model = TiedRows(ill)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.2), nn.CrossEntropyLoss())


class ConvNet(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.relu(self.conv2(x)).amax((2, 3)))


@sick("symmetry", "conv", "fc", why="All filters of both convolutions start as the same box filter.", holdout=True)
def box_filters(ill: bool) -> Program:
    model = ConvNet()
    if ill:
        constant_(model, 0.05)
    return Program(model, pixels(image=True), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class GRUClassifier(nn.Module):
    """A recurrent classifier with hand-set weights."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 24, batch_first=True)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x.squeeze(1))
        return self.fc(out[:, -1])


@sick("symmetry", "gru", "fc", why="All weights are 0.1, so the 24 units of the GRU act as one.", holdout=True)
def constant_gru(ill: bool) -> Program:
    model = GRUClassifier()
    if ill:
        constant_(model, 0.1)
    return Program(model, digits(image=True), torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())
