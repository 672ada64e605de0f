"""Trainable parameters that the loss, or the optimizer, cannot reach."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import characters, digits, pixels, remembered, table, vocabulary

# mypy: disable-error-code="no-any-return"


class EncoderHead(nn.Module):
    """An encoder and a head, with a detach forgotten between them."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 10))
        self.detach = detach

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        if self.detach:
            features = features.detach()
        return self.head(features)


@sick("disconnected", "encoder", why="features.detach() between encoder and head: the encoder never learns.")
def detached_encoder(ill: bool) -> Program:
    model = EncoderHead(ill)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())


class NoGradBackbone(nn.Module):
    """torch.no_grad() around a backbone that the optimizer is to train."""

    def __init__(self, no_grad: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(2),
        )
        self.fc = nn.Linear(32, 10)
        self.no_grad = no_grad

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.no_grad and torch.is_grad_enabled()):
            z = self.backbone(x).flatten(1)
        return self.fc(z)


@sick("disconnected", "backbone", why="The backbone runs under no_grad although all of it is trainable.")
def no_grad_backbone(ill: bool) -> Program:
    model = NoGradBackbone(ill)
    return Program(model, digits(image=True), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class Quantizer(nn.Module):
    """Rounds the code; the straight-through line is missing."""

    def __init__(self, straight_through: bool) -> None:
        super().__init__()
        self.enc = nn.Linear(64, 6)
        self.dec = nn.Linear(6, 64)
        self.out = nn.Linear(64, 10)
        self.straight_through = straight_through

    def forward(self, x: Tensor) -> Tensor:
        z = 2 * torch.tanh(self.enc(x))
        code = torch.round(z)
        if self.straight_through:
            code = z + (code - z).detach()
        return self.out(F.relu(self.dec(code)))


@sick("disconnected", "enc", "round", why="torch.round has gradient zero, so the layer before it gets none.")
def rounded_code(ill: bool) -> Program:
    model = Quantizer(not ill)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())


class ListNet(nn.Module):
    """Keeps its hidden layers in a Python list."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.inp = nn.Linear(64, 5)
        layers = [nn.Linear(5, 5) for _ in range(4)]
        self.layers = nn.ModuleList(layers) if registered else layers
        self.out = nn.Linear(5, 10)
        for layer in layers:
            nn.init.orthogonal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inp(x))
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)


@sick("disconnected", "layers", why="Four layers live in a Python list: parameters() does not see them.")
def python_list(ill: bool) -> Program:
    model = ListNet(not ill)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


@sick("disconnected", "encoder", "optimizer", why="The optimizer was given the head's parameters only.")
def optimizer_head_only(ill: bool) -> Program:
    model = EncoderHead(False)
    parameters = model.head.parameters() if ill else model.parameters()
    return Program(model, digits(), torch.optim.Adam(parameters, lr=5e-3), F.cross_entropy)


class DataNet(nn.Module):
    """Uses .data to 'save memory'."""

    def __init__(self, data: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(30, 3)
        self.fc2 = nn.Linear(3, 3)
        self.fc3 = nn.Linear(3, 2)
        self.data = data

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x))
        x = x.data if self.data else x
        return self.fc3(torch.tanh(self.fc2(x)))


@sick("disconnected", "fc1", why="x.data cuts the graph behind fc1.")
def dot_data(ill: bool) -> Program:
    model = DataNet(ill)
    return Program(model, table("breast_cancer"), torch.optim.Adam(model.parameters(), lr=2e-2), nn.CrossEntropyLoss())


class RowByRow(nn.Module):
    """Reads an image row by row; the state is detached at each row, as if every row were a window of its own."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 32), nn.Linear(32, 10)
        self.detach = detach

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 32)
        for row in x.flatten(1).split(8, dim=1):
            state = self.cell(row, state.detach() if self.detach else state)
        return self.head(state)


@sick("disconnected", "cell", why="The state is detached at every time step: only the last row is learnt from.")
def detached_state(ill: bool) -> Program:
    model = RowByRow(ill)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class StackedAutoencoder(nn.Module):
    """Two stages; the second runs on a NumPy copy of the first's code."""

    def __init__(self, numpy: bool) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Linear(64, 8), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
        self.numpy = numpy

    def forward(self, x: Tensor) -> Tensor:
        code = self.stage1(x)
        if self.numpy:
            code = torch.from_numpy(code.detach().numpy())
        return self.stage2(code)


@sick("disconnected", "stage1", why="The code goes through NumPy and comes back without a graph.", holdout=True)
def through_numpy(ill: bool) -> Program:
    model = StackedAutoencoder(ill)
    batches = [(x, x) for x, _ in table("digits")]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss())


class TokenPipeline(nn.Module):
    """A reader picks tokens by argmax; a second net embeds the tokens again."""

    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.reader = nn.GRU(8, 24, batch_first=True)
        self.token = nn.Linear(24, 12)
        self.embedding = nn.Embedding(12, 24)
        self.answer = nn.Sequential(nn.ReLU(), nn.Linear(24, 8))
        self.soft = soft

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.reader(x)
        scores = self.token(out[:, -1])
        if self.soft:
            return self.answer(scores.softmax(-1) @ self.embedding.weight)
        return self.answer(self.embedding(scores.argmax(-1)))


@sick(
    "disconnected",
    "reader",
    "token",
    "argmax",
    why="Argmax between two nets: the reader gets no gradient.",
    holdout=True,
)
def argmax_tokens(ill: bool) -> Program:
    model = TokenPipeline(not ill)
    return Program(model, remembered(8, 3), torch.optim.Adam(model.parameters(), lr=2e-2), nn.CrossEntropyLoss())


class CharModel(nn.Module):
    """LSTM language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(vocabulary()), 16)
        self.lstm = nn.LSTM(16, 48, batch_first=True)
        self.proj = nn.Linear(48, len(vocabulary()))

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(self.embed(x))
        return self.proj(out).transpose(1, 2)


@sick(
    "disconnected",
    "lstm",
    "embed",
    "optimizer",
    holdout=True,
    why="Embedding and LSTM were replaced after the optimizer was made, which still holds the old ones.",
)
def replaced_after_optimizer(ill: bool) -> Program:
    model = CharModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if ill:
        model.embed = nn.Embedding(len(vocabulary()), 16)
        model.lstm = nn.LSTM(16, 48, batch_first=True)
    return Program(model, characters(), optimizer, nn.CrossEntropyLoss())


class SignNet(nn.Module):
    """A binarised layer without a surrogate gradient."""

    def __init__(self, binary: bool) -> None:
        super().__init__()
        self.features = nn.Linear(64, 5)
        self.classifier = nn.Linear(5, 10)
        self.binary = binary

    def forward(self, x: Tensor) -> Tensor:
        z = self.features(x)
        return self.classifier(torch.sign(z) if self.binary else torch.tanh(z))


@sick("disconnected", "features", "sign", why="torch.sign passes no gradient to the layer before it.")
def sign_activation(ill: bool) -> Program:
    model = SignNet(ill)
    return Program(model, pixels(), torch.optim.Adam(model.parameters(), lr=2e-2), nn.CrossEntropyLoss())
