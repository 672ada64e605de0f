"""ReLU layers in which no unit ever fires."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import digits, pixels, table

# mypy: disable-error-code="no-any-return"


class Net(nn.Module):
    """The MLP of every tutorial."""

    def __init__(self, inputs: int = 64, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = F.relu(self.fc3(x))
        return self.out(x)


@sick("dead-units", "fc2", why="The bias of fc2 starts at -10, no unit of that layer ever fires.")
def relu_bias_minus_ten(ill: bool) -> Program:
    model = Net()
    nn.init.constant_(model.fc2.bias, -10.0 if ill else 0.0)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@sick("dead-units", "fc1", why="Pixels are positive and the weights of fc1 were drawn negative: fc1 is silent.")
def relu_negative_weights(ill: bool) -> Program:
    model = Net()
    nn.init.uniform_(model.fc1.weight, -0.4, 0.0 if ill else 0.4)
    return Program(model, pixels(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class ConvNet(nn.Module):
    """A small image classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(32 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.conv3(x))
        return self.classifier(x.flatten(1))


@sick("dead-units", "conv2", why="All channels of conv2 are dead from a bias of -6, in a net otherwise fine.")
def conv_layer_dead(ill: bool) -> Program:
    model = ConvNet()
    assert model.conv2.bias is not None
    nn.init.constant_(model.conv2.bias, -6.0 if ill else 0.0)
    return Program(model, digits(image=True), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


@sick("dead-units", r"^[345]$", why="BatchNorm's beta starts at -6, so the ReLU behind it never fires.", holdout=True)
def batchnorm_beta_dead(ill: bool) -> Program:
    model = nn.Sequential(
        nn.Linear(30, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 2),
    )
    nn.init.constant_(model[4].bias, -6.0 if ill else 0.0)  # type: ignore[arg-type]
    return Program(model, table("breast_cancer"), torch.optim.Adam(model.parameters(), lr=1e-3), F.cross_entropy)


@sick(
    "dead-units",
    "2",
    "5",
    "dropout",
    why="The share to keep was given as the share to silence: 95 % of units are off at each step.",
)
def dropout_keeps_little(ill: bool) -> Program:
    p = 0.95 if ill else 0.05
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Dropout(p), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(p), nn.Linear(128, 10)
    )  # fmt: skip
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=1e-3), F.cross_entropy)
