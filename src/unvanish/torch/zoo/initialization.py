"""Weights below what their activation needs: the signal fades layer by layer."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import digits, table
from unvanish.torch.zoo._equation import misfit

# mypy: disable-error-code="no-any-return"


def stack(
    depth: int, activation: type[nn.Module], width: int = 64, inputs: int = 64, classes: int = 10
) -> nn.Sequential:
    """``depth`` x (Linear, activation) and a head."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def centred_sigmoid_(model: nn.Sequential, gain: float) -> None:
    """Orthogonal weights of ``gain``, with biases that take the mean 1/2 of the sigmoids away."""
    for i, layer in enumerate(m for m in list(model)[:-1] if isinstance(m, nn.Linear)):
        nn.init.orthogonal_(layer.weight, gain if i else 1.0)
        with torch.no_grad():
            layer.bias.copy_(-0.5 * layer.weight.sum(1) if i else torch.zeros_like(layer.bias))


@sick("initialization", r"^\d+$", why="Twelve sigmoid layers with PyTorch's default init, far below critical.")
def sigmoid_twelve(ill: bool) -> Program:
    model = stack(12, nn.Sigmoid)
    if not ill:
        centred_sigmoid_(model, 4.0)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


@sick("initialization", r"hidden\.|tanh", why="Thirty tanh layers with default init lose .55 nats each.")
def tanh_thirty(ill: bool) -> Program:
    model = DeepTanh(30)
    if not ill:
        for layer in model.hidden:
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-4), F.cross_entropy)


class DeepTanh(nn.Module):
    """Deep MLP, functional style."""

    def __init__(self, depth: int, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.head(x)


@sick("initialization", r"^\d+$", why="Twenty ReLU layers with default init, which is 2.4 times too small each.")
def relu_twenty(ill: bool) -> Program:
    model = stack(20, nn.ReLU)
    if not ill:
        for layer in list(model)[:-1]:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())


class Classifier(nn.Module):
    """Seven layers, weights initialised by hand."""

    def __init__(self, std: float | None) -> None:
        super().__init__()
        self.encoder = stack(6, nn.ReLU, inputs=30, classes=64)
        self.fc = nn.Linear(64, 2)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, std if std is not None else (2 / m.in_features) ** 0.5)
                nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.encoder(x)))


@sick("initialization", r"encoder\.|fc", why="Every weight was drawn from N(0, 0.01) in an eight-layer ReLU net.")
def relu_normal_hundredth(ill: bool) -> Program:
    model = Classifier(0.01 if ill else None)
    return Program(model, table("breast_cancer"), torch.optim.SGD(model.parameters(), lr=0.05), nn.CrossEntropyLoss())


class Bottleneck(nn.Module):
    """A fine ReLU net with two projections in its middle."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.down = nn.Linear(64, 32, bias=False)
        self.up = nn.Linear(32, 64, bias=False)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight)
        nn.init.normal_(self.down.weight, std=std)
        nn.init.normal_(self.up.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.down(self.features(x))))


@sick("initialization", "down", "up", why="Two small projections in the middle start at 1e-3 and choke a fine net.")
def tiny_bottleneck(ill: bool) -> Program:
    model = Bottleneck(1e-3 if ill else 0.15)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.05), nn.CrossEntropyLoss())


@sick("initialization", r"^\d+$", why="A stack of ten linear layers of std 0.02 passes a millionth of the gradient.")
def linear_stack_small(ill: bool) -> Program:
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(10)], nn.Linear(64, 10))
    for layer in list(model)[:-1]:
        nn.init.normal_(layer.weight, std=0.02 if ill else 0.125)  # type: ignore[arg-type]
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.01), F.cross_entropy)


@sick("initialization", r"blocks\.", why="Sixteen GELU layers with default init in a plain stack.", holdout=True)
def gelu_sixteen(ill: bool) -> Program:
    model = nn.Sequential()
    model.add_module("embed", nn.Linear(64, 64))
    model.add_module("blocks", nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(16)]))
    model.add_module("classifier", nn.Linear(64, 10))
    if not ill:
        mirror_(model.get_submodule("blocks"))
    return Program(model, digits(), torch.optim.AdamW(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())


def mirror_(blocks: nn.Module) -> None:
    """Weights [[Q, -Q], [-Q, Q]] and zero bias: gelu(x) - gelu(-x) = x, so the stack starts as an isometry."""
    for layer in blocks.modules():
        if isinstance(layer, nn.Linear):
            half = nn.init.orthogonal_(torch.empty(layer.out_features // 2, layer.in_features // 2))
            with torch.no_grad():
                layer.weight.copy_(torch.cat([torch.cat([half, -half], 1), torch.cat([-half, half], 1)]))
                layer.bias.zero_()


class PlainConvNet(nn.Module):
    """VGG-like: convolutions without normalisation."""

    def __init__(self, depth: int = 20, channels: int = 16) -> None:
        super().__init__()
        widths = [1] + [channels] * depth
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.fc = nn.Linear(channels * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.fc(x.flatten(1))


@sick(
    "initialization",
    r"convs\.",
    why="Twenty convolutions with default init, each 2.4 times too small for ReLU.",
    holdout=True,
)
def conv_twenty(ill: bool) -> Program:
    model = PlainConvNet()
    for conv in model.convs:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        if not ill:
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)
    return Program(model, digits(32, image=True), torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())


class ParameterTanh(nn.Module):
    """Matrices in a dictionary, and a tanh of plain ops, as old tutorials have them."""

    def __init__(self, gain: float | None) -> None:
        super().__init__()
        sizes = [64, 64, 64, 64, 64, 64, 10]
        self.weights = nn.ParameterDict()
        for index, (a, b) in enumerate(pairwise(sizes)):
            self.weights[f"w{index}"] = nn.Parameter(torch.randn(b, a) * (a**-0.5 if gain is None else gain))

    def forward(self, x: Tensor) -> Tensor:
        for index in range(6):
            x = F.linear(x, self.weights[f"w{index}"])
            if index < 5:
                x = (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x))
        return x


@sick("initialization", r"weights\.", why="0.01 * randn under a tanh written by hand: 13 times too small.")
def hundredth_by_hand(ill: bool) -> Program:
    model = ParameterTanh(0.01 if ill else None)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), nn.CrossEntropyLoss())


@sick("initialization", r"\d", why="A PINN with weights of 0.01: u is 1e-9, although each layer gets a large gradient.")
def tiny_weights_in_equation(ill: bool) -> Program:
    layers: list[nn.Module] = []
    for width in (1, 32, 32, 32, 32):
        layers += [nn.Linear(width, 32), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(32, 1))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01) if ill else nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return misfit(net, batch, 10)

    batches = [(2 * torch.rand(64, 1) - 1, torch.tensor([[-1.0], [1.0]])) for _ in range(12)]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=2e-3), objective=objective)
