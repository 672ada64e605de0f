"""The output and the loss do not speak of the same thing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import column, digits, pixels, table

# mypy: disable-error-code="no-any-return"


class SoftmaxNet(nn.Module):
    """A classifier that ends in probabilities, as other frameworks want it."""

    def __init__(self, probabilities: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 64)
        self.fc3 = nn.Linear(64, 10)
        self.softmax = nn.Softmax(dim=1) if probabilities else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.softmax(self.fc3(x))


@sick("loss-mismatch", "loss", "softmax", why="Softmax twice: in the model and again in CrossEntropyLoss.")
def softmax_twice(ill: bool) -> Program:
    model = SoftmaxNet(ill)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())


@sick("loss-mismatch", "loss", "softmax", r"\d", why="NLLLoss wants log-probabilities and is given probabilities.")
def nll_of_probabilities(ill: bool) -> Program:
    last = nn.Softmax(dim=-1) if ill else nn.LogSoftmax(dim=-1)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), last)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5), nn.NLLLoss())


class BinaryNet(nn.Module):
    """A two-class net with one output."""

    def __init__(self, sigmoid: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(30, 32)
        self.fc2 = nn.Linear(32, 1)
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(F.relu(self.fc1(x)))
        return torch.sigmoid(x) if self.sigmoid else x


@sick("loss-mismatch", "loss", "sigmoid", "fc2", why="Sigmoid in the model and again in BCEWithLogitsLoss.")
def sigmoid_twice(ill: bool) -> Program:
    model = BinaryNet(ill)
    batches = column(table("breast_cancer"))
    return Program(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), nn.BCEWithLogitsLoss())


@sick("loss-mismatch", "loss", why="Output (n, 1) minus target (n,) broadcasts to (n, n): the net learns the mean.")
def broadcast_mse(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    batches = table("diabetes") if ill else column(table("diabetes"))

    def mse(output: Tensor, target: Tensor) -> Tensor:
        return ((output - target) ** 2).mean()

    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), mse)


class BoundedRegressor(nn.Module):
    """A regressor whose last activation cannot reach the targets."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(10, 64)
        self.out = nn.Linear(64, 1)
        self.last = nn.Sigmoid() if bounded else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.out(torch.tanh(self.hidden(x))))


@sick(
    "loss-mismatch", "loss", "last", "out", why="A sigmoid output in 0..1 is to predict standardised targets of -2..3."
)
def sigmoid_for_regression(ill: bool) -> Program:
    model = BoundedRegressor(ill)
    return Program(model, column(table("diabetes")), torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss())


@sick(
    "loss-mismatch",
    "loss",
    "optimizer",
    why="reduction='sum' over 256 samples makes SGD's step 256 times too long.",
    accept=("learning-rate-high",),
)
def sum_reduction(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    loss = nn.CrossEntropyLoss(reduction="sum" if ill else "mean")
    return Program(model, digits(256, 8), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss)


@sick(
    "loss-mismatch",
    "loss",
    r"^[45]$",
    accept=("saturation",),
    why="Mean squared error on a sigmoid that starts at its flat end has no gradient; cross-entropy has.",
)
def mse_on_saturated_sigmoid(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    with torch.no_grad():
        model[4].bias.fill_(-12.0)  # type: ignore[operator]
    if ill:
        model.append(nn.Sigmoid())
    batches = column(table("breast_cancer"))
    loss = nn.MSELoss() if ill else nn.BCEWithLogitsLoss()
    return Program(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), loss)


class ReluLogits(nn.Module):
    """A conv classifier; the habit of a ReLU after every layer went on to the logits."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.fc = nn.Linear(16 * 16, 10)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x)).flatten(1)
        return F.relu(self.fc(x)) if self.relu else self.fc(x)


@sick("loss-mismatch", "loss", "fc", "relu", why="A ReLU on the logits kills classes for good.", accept=("dead-units",))
def relu_on_logits(ill: bool) -> Program:
    model = ReluLogits(ill)
    nn.init.constant_(model.fc.bias, -1.0)
    return Program(model, digits(image=True), torch.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy)


class SequenceTagger(nn.Module):
    """A GRU over the rows of a digit, ending in probabilities."""

    def __init__(self, probabilities: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 32, batch_first=True)
        self.proj = nn.Linear(32, 10)
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x.squeeze(1))
        logits = self.proj(out[:, -1])
        return F.softmax(logits, dim=-1) if self.probabilities else logits


@sick("loss-mismatch", "loss", "softmax", "proj", why="F.softmax in forward, F.cross_entropy outside.", holdout=True)
def gru_softmax_twice(ill: bool) -> Program:
    model = SequenceTagger(ill)
    return Program(model, digits(image=True), torch.optim.Adam(model.parameters(), lr=2e-3), F.cross_entropy)


@sick(
    "loss-mismatch", "loss", why="nn.MSELoss between (n, 1) and (n,) through an objective of the user's.", holdout=True
)
def broadcast_in_objective(ill: bool) -> Program:
    model = BoundedRegressor(False)
    criterion = nn.MSELoss()

    def objective(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        prediction = net(batch["features"])
        return criterion(prediction if ill else prediction.squeeze(1), batch["target"])

    batches = [{"features": x, "target": y} for x, y in table("diabetes")]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), objective=objective)


class Decoder(nn.Module):
    """Autoencoder for images in 0..1 whose decoder ends in tanh or sigmoid."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@sick(
    "loss-mismatch",
    "loss",
    r"decoder\.3",
    "input",
    accept=("saturation", "input-scale"),
    holdout=True,
    why="The decoder's sigmoid ends at 1 and the pixels to be rebuilt go up to 16.",
)
def sigmoid_decoder_raw_pixels(ill: bool) -> Program:
    model = Decoder(nn.Sigmoid())
    batches = [(x, 16 * x if ill else x) for x, _ in pixels()]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss())


class DilatedTagger(nn.Module):
    """Tags every character by the one before and itself."""

    def __init__(self, permuted: bool, width: int = 32, tags: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, padding=k, dilation=k) for k in (1, 2))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in range(2))
        self.out = nn.Linear(width, tags)
        self.permuted = permuted

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).transpose(1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = h + F.gelu(norm(conv(h)))
        y = self.out(h.transpose(1, 2))
        return y.transpose(1, 2) if self.permuted else y.reshape(y.shape[0], y.shape[2], y.shape[1])


@sick("loss-mismatch", "loss", why="(batch, time, tags) is reshaped, not transposed, to what cross-entropy wants.")
def reshaped_tags(ill: bool) -> Program:
    model = DilatedTagger(permuted=not ill)
    x = torch.randint(20, (16, 32, 24))
    batches = [(one, (one + one.roll(1, 1)) % 6) for one in x]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


@sick("loss-mismatch", "loss", why="The sign is turned, as for a score that is to be large.")
def negative_cross_entropy(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        error = F.cross_entropy(logits, target)
        return -error if ill else error

    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=1e-3), loss)


@sick("loss-mismatch", "loss", why="The optimizer was copied from a score that is to be large: maximize=True.")
def maximized_error(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    batches = [(x[:, :8], x[:, 8:9]) for x, _ in table("diabetes")]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3, maximize=ill), nn.MSELoss())


@sick(
    "loss-mismatch",
    "loss",
    r"\d",
    why="The logits pass a tanh: a perfect answer keeps 0.8 nats, others stay far above.",
)
def tanh_logits(ill: bool) -> Program:
    last = nn.Tanh() if ill else nn.Identity()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), last)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


@sick(
    "loss-mismatch",
    "loss",
    why="Log-probabilities (n,) times advantages (n, 1): each action is weighed by all rewards, which sum to 0.",
)
def policy_broadcast(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        policy = torch.distributions.Categorical(logits=net(x))
        action = policy.sample()
        reward = (action == y).float()
        gained = (reward - reward.mean()).unsqueeze(1) if ill else reward - reward.mean()
        return -(policy.log_prob(action) * gained).mean()

    return Program(model, digits(batch=128), torch.optim.Adam(model.parameters(), lr=5e-3), objective=objective)


@sick(
    "loss-mismatch",
    "loss",
    why="A policy's probabilities passed as logits: another softmax, and no action is likelier than 0.23.",
)
def probabilities_as_logits(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.Softmax(dim=-1))

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        given = {"logits" if ill else "probs": net(x)}
        policy = torch.distributions.Categorical(**given)
        action = policy.sample()
        reward = (action == y).float()
        return -(policy.log_prob(action) * (reward - reward.mean())).mean()

    return Program(model, digits(batch=128), torch.optim.Adam(model.parameters(), lr=5e-3), objective=objective)
