"""Inputs or targets on a scale the network was not made for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import Batches, column, digits, pixels, table

# mypy: disable-error-code="no-any-return"


def scaled(batches: Batches, x: float = 1.0, y: float = 1.0, offset: float = 0.0) -> Batches:
    """The same batches in other units."""
    return [(a * x + offset, b * y if b.is_floating_point() else b) for a, b in batches]


class TanhNet(nn.Module):
    """Two tanh layers and a head."""

    def __init__(self, inputs: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


@sick(
    "input-scale",
    "input",
    "fc1",
    why="Wine's raw features, proline up to 1680, saturate the first tanh layer.",
    accept=("saturation",),
)
def wine_raw_tanh(ill: bool) -> Program:
    model = TanhNet(13, 3)
    batches = table("wine", 32, raw=ill)
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())


@sick(
    "input-scale",
    "input",
    r"^[01]$",
    why="Raw wine features of size 1000 make SGD's first steps explode.",
    accept=("learning-rate-high",),
)
def wine_raw_sgd(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    batches = table("wine", 32, raw=ill)
    return Program(model, batches, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), F.cross_entropy)


@sick(
    "input-scale",
    "input",
    "fc1",
    why="16-bit images with a background of 30000: every tanh of fc1 is at +-1, for any image.",
    accept=("saturation",),
)
def sixteen_bit_pixels(ill: bool) -> Program:
    model = TanhNet(64, 10)
    batches = scaled(pixels(), 2000.0, offset=30000.0) if ill else pixels()
    return Program(model, batches, torch.optim.SGD(model.parameters(), lr=0.3), nn.CrossEntropyLoss())


class PriceModel(nn.Module):
    """A regression MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


@sick(
    "input-scale",
    "loss",
    "input",
    "target",
    r"net\.4",
    why="Targets are 1e5 and Adam moves the output by 1e-3 a step.",
    accept=("learning-rate-low", "loss-mismatch"),
)
def targets_hundred_thousand(ill: bool) -> Program:
    model = PriceModel()
    batches = [(x, 1e5 * (y + 2) if ill else y) for x, y in table("diabetes")]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss())


@sick("input-scale", "input", r"^0$", why="Inputs in metres are 1e-4 where the net expects numbers around 1.")
def tiny_inputs(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    batches = scaled(table("breast_cancer"), 1e-4 if ill else 1.0)
    return Program(model, batches, torch.optim.SGD(model.parameters(), lr=0.05), nn.CrossEntropyLoss())


class SensorLSTM(nn.Module):
    """Reads 13 sensor values one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.fc = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x.unsqueeze(-1))
        return self.fc(h[-1])


@sick(
    "input-scale",
    "input",
    "lstm",
    why="Sensor counts around 20000 with small changes saturate every gate.",
    accept=("saturation",),
    holdout=True,
)
def sensor_counts(ill: bool) -> Program:
    model = SensorLSTM()
    batches = table("wine", 32)
    batches = scaled(batches, 300.0, offset=20000.0) if ill else batches
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class ConvRegressor(nn.Module):
    """A conv net that reads a quantity from an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.fc = nn.Linear(16 * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1))


@sick(
    "input-scale",
    "loss",
    "input",
    "target",
    "fc",
    why="The regression target is in thousands of units; L1 and Adam crawl.",
    accept=("learning-rate-low", "loss-mismatch"),
    holdout=True,
)
def conv_regression_raw_target(ill: bool) -> Program:
    model = ConvRegressor()
    batches = column([(x, 5000.0 * y.float() if ill else (y.float() - 4.5) / 2.9) for x, y in pixels(image=True)])
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), nn.L1Loss())


class PatientNet(nn.Module):
    """A sigmoid MLP on patient records."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, 64), nn.Sigmoid(), nn.Linear(64, 64), nn.Sigmoid())
        self.readout = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.encoder(x))


@sick(
    "input-scale",
    "input",
    r"encoder\.[01]",
    why="Raw diabetes features (cholesterol 200, sex 1..2) feed a sigmoid layer.",
    accept=("saturation",),
    holdout=True,
)
def diabetes_raw_sigmoid(ill: bool) -> Program:
    model = PatientNet()
    nn.init.xavier_normal_(model.encoder[0].weight, gain=3.0)  # type: ignore[arg-type]
    batches = table("diabetes", raw=True)
    x = torch.cat([a for a, _ in batches])
    if not ill:
        batches = [((a - x.mean(0)) / x.std(0), y) for a, y in batches]
    batches = column([(a, (y - 152.0) / 77.0) for a, y in batches])
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss())


@sick("input-scale", "input", why="The images of a batch are all the first one: an index that was never moved.")
def same_image_for_all(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    batches = [(x[:1].expand_as(x).clone() if ill else x, y) for x, y in digits()]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@sick(
    "input-scale",
    "input",
    why="Pixels of 0 to 1 are normalised with the mean and deviation of pixels of 0 to 255: all are about -1.",
)
def pixels_normalised_for_bytes(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    mean = std = 127.5 if ill else 0.5
    batches = [((x - mean) / std, y) for x, y in pixels()]
    return Program(model, batches, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), F.cross_entropy)


class Denoiser(nn.Module):
    """Predicts the noise of a diffusion, told how far it has gone."""

    def __init__(self, raw: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(65, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64))
        self.raw = raw

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        time = steps.float().unsqueeze(1)
        return self.net(torch.cat([x, time if self.raw else time / 1000], dim=1))


@sick("input-scale", "input", why="The time step, 0 to 999, stands as it is beside pixels of -1 to 1.")
def raw_time_step(ill: bool) -> Program:
    model = Denoiser(ill)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = 2 * batch[0] - 1
        steps, noise = torch.randint(1000, (len(x),)), torch.randn_like(x)
        share = kept[steps].unsqueeze(1)
        return F.mse_loss(net(share.sqrt() * x + (1 - share).sqrt() * noise, steps), noise)

    return Program(model, pixels(), torch.optim.Adam(model.parameters(), lr=1e-3), objective=objective)


class TwoHeads(nn.Module):
    """A class and a number from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.kind, self.ink = nn.Linear(32, 10), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.kind(features), self.ink(features).squeeze(1)


@sick("input-scale", "target", why="Beside the classes a number in the ten thousands is fitted as it is.")
def raw_number_beside_classes(ill: bool) -> Program:
    model = TwoHeads()

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        ink = 1000 * x.sum(1)
        target = ink if ill else (ink - 19500) / 2000
        kind, found = net(x)
        return F.cross_entropy(kind, y) + F.mse_loss(found, target)

    return Program(model, pixels(), torch.optim.Adam(model.parameters(), lr=1e-3), objective=objective)
