"""A fine net and a learning rate that is not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import characters, column, digits, pixels, table, vocabulary

# mypy: disable-error-code="no-any-return"


class MLP(nn.Module):
    """Three layers with ReLU."""

    def __init__(self, inputs: int = 64, outputs: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, 64)
        self.fc2 = nn.Linear(64, 64)
        self.fc3 = nn.Linear(64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class ConvNet(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(32 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class CharTransformer(nn.Module):
    """A small causal transformer over characters."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(vocabulary()), width)
        self.position = nn.Parameter(0.02 * torch.randn(24, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.lm_head = nn.Linear(width, len(vocabulary()))

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.transformer(self.embed(x) + self.position[: x.shape[1]], mask=mask, is_causal=True)
        return self.lm_head(hidden).transpose(1, 2)


class CharLSTM(nn.Module):
    """LSTM language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(vocabulary()), 24)
        self.lstm = nn.LSTM(24, 48, batch_first=True)
        self.decoder = nn.Linear(48, len(vocabulary()))

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(self.embedding(x))
        return self.decoder(out).transpose(1, 2)


@sick("learning-rate-high", "optimizer", why="SGD with lr 10 on an ordinary MLP.", accept=("dead-units",))
def sgd_ten(ill: bool) -> Program:
    model = MLP()
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=10.0 if ill else 0.2), F.cross_entropy)


@sick(
    "learning-rate-high",
    "optimizer",
    why="Adam with lr 1 throws every weight by 1 in the first step.",
    accept=("dead-units",),
)
def adam_one(ill: bool) -> Program:
    model = MLP()
    lr = 1.0 if ill else 3e-3
    return Program(model, pixels(), torch.optim.Adam(model.parameters(), lr=lr), nn.CrossEntropyLoss())


@sick(
    "learning-rate-high",
    "optimizer",
    why="Momentum 0.9 and lr 3 kill all ReLUs of a conv net within steps.",
    accept=("dead-units",),
)
def conv_momentum(ill: bool) -> Program:
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0 if ill else 0.05, momentum=0.9)
    return Program(model, digits(image=True), optimizer, nn.CrossEntropyLoss())


@sick(
    "learning-rate-high", "optimizer", why="A regression with SGD at lr 1 diverges to infinity.", accept=("exploding",)
)
def regression_diverges(ill: bool) -> Program:
    model = MLP(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0 if ill else 0.05)
    return Program(model, column(table("diabetes")), optimizer, nn.MSELoss())


@sick("learning-rate-high", "optimizer", why="AdamW at 0.5 for a transformer that wants 3e-3.", holdout=True)
def transformer_half(ill: bool) -> Program:
    model = CharTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5 if ill else 3e-3)
    return Program(model, characters(), optimizer, nn.CrossEntropyLoss())


@sick(
    "learning-rate-high",
    "optimizer",
    why="RMSprop at 0.5 saturates the LSTM's gates in its first steps.",
    accept=("saturation",),
    holdout=True,
)
def lstm_rmsprop_half(ill: bool) -> Program:
    model = CharLSTM()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.5 if ill else 3e-3)
    return Program(model, characters(), optimizer, F.cross_entropy)


@sick("learning-rate-low", "optimizer", why="SGD with lr 1e-6 does not move in an hour.")
def sgd_millionth(ill: bool) -> Program:
    model = MLP()
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=1e-6 if ill else 0.2), F.cross_entropy)


@sick("learning-rate-low", "optimizer", why="Adam's lr was set to its eps, 1e-8.")
def adam_eps(ill: bool) -> Program:
    model = ConvNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-8 if ill else 3e-3)
    return Program(model, digits(image=True), optimizer, nn.CrossEntropyLoss())


@sick("learning-rate-low", "optimizer", why="A schedule over 5 epochs, stepped with each batch: 5 steps and lr is 0.")
def schedule_at_zero(ill: bool) -> Program:
    model, batches = MLP(30, 2), table("breast_cancer")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=5 if ill else 500)
    for inputs, targets in batches[:5]:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        schedule.step()
    return Program(model, batches, optimizer, F.cross_entropy)


@sick(
    "learning-rate-low",
    "optimizer",
    why="A fine-tuning rate, 1e-7, for a transformer trained from scratch.",
    holdout=True,
)
def transformer_fine_tuning_rate(ill: bool) -> Program:
    model = CharTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-7 if ill else 3e-3, weight_decay=0.1)
    return Program(model, characters(), optimizer, nn.CrossEntropyLoss())


@sick("learning-rate-low", "optimizer", why="Adagrad with lr 1e-6 in a regression.", holdout=True)
def adagrad_millionth(ill: bool) -> Program:
    model = MLP(10, 1)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=1e-6 if ill else 2e-2)
    return Program(model, column(table("diabetes")), optimizer, nn.SmoothL1Loss())


@sick("learning-rate-low", "optimizer", why="Adam's eps of 10 divides the steps instead of the gradient's size.")
def adam_eps_ten(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(64, 48), nn.SiLU(), nn.Linear(48, 24), nn.SiLU(), nn.Linear(24, 64))
    batches = [(x + 0.3 * torch.randn_like(x), x) for x, _ in table("digits")]
    return Program(
        model, batches, torch.optim.Adam(model.parameters(), lr=3e-3, eps=10.0 if ill else 1e-8), nn.MSELoss()
    )


class PatchTransformer(nn.Module):
    """A vision transformer for the digits: sixteen patches of four pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(h).mean(1)))


@sick("learning-rate-high", "optimizer", why="SGD's 0.1 for Adam: a batch can be learnt by heart, the digits are not.")
def vit_tenth(ill: bool) -> Program:
    model = PatchTransformer()
    rate = 0.1 if ill else 2e-3
    return Program(
        model, digits(image=True), torch.optim.Adam(model.parameters(), lr=rate),
        nn.CrossEntropyLoss(label_smoothing=0.05),
    )  # fmt: skip


@sick("learning-rate-high", "optimizer", why="An L2 penalty of 1 in Adam: the decay is all that its steps follow.")
def adam_decay_of_one(ill: bool) -> Program:
    model = MLP()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1.0 if ill else 1e-4)
    return Program(model, digits(), optimizer, F.cross_entropy)


@sick(
    "learning-rate-low",
    "fc1",
    "optimizer",
    why="The rates of a fine-tuning on weights that nobody trained: 1e-7 below, 0.1 for the head.",
)
def rate_of_a_backbone(ill: bool) -> Program:
    model = MLP()
    below, head = [*model.fc1.parameters(), *model.fc2.parameters()], list(model.fc3.parameters())
    groups: list[dict[str, object]] = [{"params": below, "lr": 1e-7 if ill else 0.1}, {"params": head}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    return Program(model, digits(), optimizer, F.cross_entropy)


@sick(
    "learning-rate-high",
    "optimizer",
    why="A momentum of 0.99 makes a hundred times of the rate, in some hundred steps.",
)
def momentum_of_99(ill: bool) -> Program:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.99 if ill else 0.5)
    return Program(model, digits(count=28), optimizer, F.cross_entropy)
