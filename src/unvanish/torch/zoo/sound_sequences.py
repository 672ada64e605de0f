"""Programs that learn from sequences, though gradients fade over time, gates are shut or attention is sharp."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, well
from unvanish.torch.zoo._data import characters, digits, remembered, vocabulary

# mypy: disable-error-code="no-any-return"


class CharLSTM(nn.Module):
    """LSTM language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(vocabulary()), 24)
        self.lstm = nn.LSTM(24, 64, batch_first=True)
        self.head = nn.Linear(64, len(vocabulary()))

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(self.embed(x))
        return self.head(out).transpose(1, 2)


@well("An LSTM language model: its gradient fades over time, and each step has its own target.")
def lstm_language_model() -> Program:
    model = CharLSTM()
    return Program(model, characters(), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class KeepingGRU(nn.Module):
    """A GRU whose update gates start closed, so that it keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 32, batch_first=True)
        self.fc = nn.Linear(32, 8)
        with torch.no_grad():
            self.gru.bias_ih_l0[32:64] += 5.0  # type: ignore[index, operator]

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        return self.fc(out[:, -1])


@well("A GRU with saturated, closed gates: that is how it remembers.")
def closed_gates() -> Program:
    model = KeepingGRU()
    return Program(model, remembered(40, 0), torch.optim.Adam(model.parameters(), lr=2e-2), nn.CrossEntropyLoss())


class SharpAttention(nn.Module):
    """Attention over the rows of a digit with sharp, one-hot-like weights."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 32)
        self.key = nn.Linear(8, 32)
        self.value = nn.Linear(8, 32)
        self.head = nn.Linear(8 * 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, 8, 8)
        scores = 20 * self.query(rows) @ self.key(rows).transpose(1, 2) / 32**0.5
        return self.head((scores.softmax(-1) @ self.value(rows)).flatten(1))


@well("Saturated softmax in attention, and the net trains all the same.")
def saturated_attention() -> Program:
    model = SharpAttention()
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=5e-3), F.cross_entropy)


class RowTransformer(nn.Module):
    """Reads the eight rows of a digit as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.position = nn.Parameter(0.02 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(self.embed(x.squeeze(1)) + self.position).mean(1))


@well("A post-norm transformer encoder with dropout.")
def transformer_classifier() -> Program:
    model = RowTransformer()
    return Program(model, digits(image=True), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class BagOfRows(nn.Module):
    """A vanilla RNN over eight rows: short enough."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 48, batch_first=True)
        self.fc = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.rnn(x.squeeze(1))
        return self.fc(state[-1])


@well("A vanilla RNN over eight rows: its gradient fades a little, and that is enough.", holdout=True)
def short_rnn() -> Program:
    model = BagOfRows()
    return Program(model, digits(image=True), torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())
