"""Programs whose samples read one another: the batch is taken for time, or dealt out anew by a reshape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import digits

# mypy: disable-error-code="no-any-return"


class LastState(nn.Module):
    """Classifies a sequence by the last state of an LSTM."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 32, batch_first=batch_first)
        self.fc = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return self.fc(states[:, -1])


@sick("loss-mismatch", "lstm", "loss", why="batch_first is missing: the LSTM walks along the batch.")
def lstm_along_the_batch(ill: bool) -> Program:
    model = LastState(batch_first=not ill)
    x = torch.randn(16, 32, 12, 3)
    batches = [(one, (one[..., 0].sum(1) > 0).long()) for one in x]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class BothDirections(nn.Module):
    """Which of two tokens a sequence holds, by the last states of both directions."""

    def __init__(self, reshaped: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 16)
        self.gru = nn.GRU(16, 32, batch_first=True, bidirectional=True)
        self.out = nn.Linear(64, 4)
        self.reshaped = reshaped

    def forward(self, x: Tensor) -> Tensor:
        _, states = self.gru(self.embed(x))
        return self.out(states.view(len(x), -1) if self.reshaped else torch.cat([states[0], states[1]], dim=1))


@sick("loss-mismatch", "out", "gru", "loss", why="(2, batch, units) is viewed as (batch, 2 units).", holdout=True)
def states_viewed(ill: bool) -> Program:
    model = BothDirections(reshaped=ill)
    x = torch.randint(24, (16, 32, 10))
    batches = [(one, (one == 3).any(1).long() + 2 * (one == 7).any(1).long()) for one in x]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class OwnAttention(nn.Module):
    """Attention over the rows of a digit, written by hand."""

    def __init__(self, dim: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(0.5 * torch.randn(8, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, 10)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x.view(-1, 8, 8)) + self.place
        q, k, v = self.qkv(rows).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, self.dim)
        return self.head(F.relu(weights @ v).mean(1))


@sick("loss-mismatch", "softmax", "loss", why="The softmax of the attention runs over the batch: dim=0.")
def attention_weights_of_the_batch(ill: bool) -> Program:
    model = OwnAttention(0 if ill else -1)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)
