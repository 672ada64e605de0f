"""Recurrent nets that should remember over many steps and cannot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import digits, remembered

# mypy: disable-error-code="no-any-return"

LENGTH = 100


class SequenceClassifier(nn.Module):
    """Any nn.RNN / nn.LSTM / nn.GRU, its last output, a linear head."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        self.fc = nn.Linear(rnn.hidden_size, 8)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc(out[:, -1])


def shown(ill: bool, length: int = LENGTH) -> list[tuple[Tensor, Tensor]]:
    """The class at the first step (ill) or at the last."""
    return remembered(length, 0 if ill else length - 1)


@sick("recurrent-depth", "rnn", why="A vanilla RNN forgets in 100 steps what it saw at the first.")
def rnn_hundred_steps(ill: bool) -> Program:
    model = SequenceClassifier(nn.RNN(8, 32, batch_first=True))
    return Program(model, shown(ill), torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())


@sick("recurrent-depth", "rnn", why="An LSTM with PyTorch's forget gates at 1/2 halves its cell at each of 100 steps.")
def lstm_hundred_steps(ill: bool) -> Program:
    model = SequenceClassifier(nn.LSTM(8, 32, batch_first=True))
    return Program(model, shown(ill), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


@sick("recurrent-depth", "rnn", why="A GRU with default update gates forgets a class over 100 steps.")
def gru_hundred_steps(ill: bool) -> Program:
    model = SequenceClassifier(nn.GRU(8, 32, batch_first=True))
    return Program(model, shown(ill), torch.optim.RMSprop(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class PaddedLSTM(nn.Module):
    """Reads the rows of a digit, then zeros up to the longest sequence of the corpus."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.fc = nn.Linear(32, 10)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        rows = F.pad(x.squeeze(1), (0, 0, 0, LENGTH - 8))
        out, _ = self.lstm(rows)
        return self.fc(out[:, self.last])


@sick("recurrent-depth", "lstm", why="The last state is read after 92 steps of padding, when the digit is forgotten.")
def lstm_padding(ill: bool) -> Program:
    model = PaddedLSTM(-1 if ill else 7)
    batches = digits(32, image=True)
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class LoopRNN(nn.Module):
    """The recurrent net of the textbook, written by hand."""

    def __init__(self, inputs: int = 8, hidden: int = 32) -> None:
        super().__init__()
        self.hidden = hidden
        self.i2h = nn.Linear(inputs, hidden)
        self.h2h = nn.Linear(hidden, hidden, bias=False)
        self.h2o = nn.Linear(hidden, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.hidden)
        for t in range(x.shape[1]):
            h = torch.tanh(self.i2h(x[:, t]) + self.h2h(h))
        return self.h2o(h)


@sick(
    "recurrent-depth",
    "h2h",
    why="A hand-written tanh recurrence with a default h2h contracts over 60 steps.",
    accept=("initialization",),
)
def handwritten_rnn(ill: bool) -> Program:
    model = LoopRNN()
    return Program(model, shown(ill, 60), torch.optim.Adam(model.parameters(), lr=5e-3), F.cross_entropy)


class CellClassifier(nn.Module):
    """nn.LSTMCell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 24)
        self.classifier = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 24)
        c = x.new_zeros(x.shape[0], 24)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.classifier(h)


@sick(
    "recurrent-depth",
    "cell",
    why="An LSTMCell loop of 60 steps with default forget gates forgets the first.",
    holdout=True,
)
def lstmcell_loop(ill: bool) -> Program:
    model = CellClassifier()
    return Program(model, shown(ill, 60), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class EncoderDecoder(nn.Module):
    """Two-layer relu RNN encoder whose last state a small decoder reads."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.RNN(8, 32, num_layers=2, nonlinearity="relu", batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        return self.decoder(state[-1])


@sick(
    "recurrent-depth",
    "encoder",
    why="A two-layer ReLU RNN with default weights loses the first of 80 steps.",
    accept=("initialization",),
    holdout=True,
)
def relu_rnn_encoder(ill: bool) -> Program:
    model = EncoderDecoder()
    return Program(model, shown(ill, 80), torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())
