"""NaN and Inf: born in the data, in the forward pass or in the backward pass."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import Batches, column, digits, pixels, table

# mypy: disable-error-code="no-any-return"


class ProbabilityNet(nn.Module):
    """Returns probabilities; the loss takes their log by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.fc2(F.relu(self.fc1(x))), dim=-1)


@sick("non-finite", "loss", why="y * log(p) summed over classes with p = 0 for pruned classes is 0 * -inf.")
def log_of_zero(ill: bool) -> Program:
    model = ProbabilityNet()
    eps = 0.0 if ill else 1e-6

    def loss(probability: Tensor, target: Tensor) -> Tensor:
        kept = torch.where(probability > 0.02, probability, torch.zeros_like(probability))
        return -(F.one_hot(target, 10) * torch.log(kept + eps)).sum(1).mean()

    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), loss)


class Siamese(nn.Module):
    """Embeds two images; the loss reads the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)


def contrastive(eps: float) -> torch.nn.Module:
    """Contrastive loss over all pairs of the batch, the distance by sqrt."""

    class Contrastive(nn.Module):
        def forward(self, z: Tensor, target: Tensor) -> Tensor:
            squared = (z.unsqueeze(0) - z.unsqueeze(1)).pow(2).sum(-1)
            distance = torch.sqrt(squared + eps)
            same = target.unsqueeze(0) == target.unsqueeze(1)
            return torch.where(same, squared, F.relu(4 - distance) ** 2).mean()

    return Contrastive()


@sick("non-finite", "loss", "sqrt", why="sqrt of the distance of a sample to itself: value 0, gradient infinite.")
def sqrt_at_zero(ill: bool) -> Program:
    model = Siamese()
    loss = contrastive(0.0 if ill else 1e-4)
    return Program(model, digits(32), torch.optim.Adam(model.parameters(), lr=3e-3), loss)


class InputScaler(nn.Module):
    """Standardises each pixel over the batch; the corner pixels never vary."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + self.eps)


@sick("non-finite", "scaler", r"^0$", "input", why="A pixel that is always 0 has std 0: 0/0 in the hand-made scaler.")
def zero_over_zero(ill: bool) -> Program:
    model = nn.Sequential(InputScaler(0.0 if ill else 0.1), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return Program(model, pixels(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class PoissonNet(nn.Module):
    """A rate by exp, for counts."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(13, 32)
        self.log_rate = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(self.log_rate(F.relu(self.fc(x))))


@sick("non-finite", "log_rate", "exp", "input", why="exp of a head on raw features overflows.", accept=("input-scale",))
def exp_overflow(ill: bool) -> Program:
    model = PoissonNet()
    with torch.no_grad():
        model.log_rate.weight.copy_(model.log_rate.weight.abs())
    batches = column(table("wine", 32, raw=ill))
    loss = nn.PoissonNLLLoss(log_input=False)
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), loss)


def with_missing(batches: Batches, ill: bool) -> Batches:
    """A missing value in every batch, as pandas leaves it."""
    for x, _ in batches:
        x[3, 5] = math.nan if ill else 0.0
    return batches


@sick("non-finite", "input", why="One missing value in the table is NaN and takes the whole net with it.")
def missing_value(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    batches = with_missing(table("breast_cancer"), ill)
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class MaskedAttention(nn.Module):
    """Attention over the rows of a digit; empty rows are masked, also where all are."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.query = nn.Linear(8, 32)
        self.key = nn.Linear(8, 32)
        self.value = nn.Linear(8, 32)
        self.out = nn.Linear(8 * 32, 10)
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, 8, 8)
        scores = self.query(rows) @ self.key(rows).transpose(1, 2) / 32**0.5
        block = (rows[..., 0] > 0).unsqueeze(1)
        weights = F.softmax(scores.masked_fill(~block, self.fill), dim=-1)
        return self.out((rows @ self.value.weight.t() + weights @ self.value(rows)).flatten(1))


@sick("non-finite", "softmax", "query", "key", why="A row of scores that is -inf everywhere has softmax 0/0.")
def masked_softmax(ill: bool) -> Program:
    model = MaskedAttention(-math.inf if ill else -1e9)
    return Program(model, pixels(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class RootFeatures(nn.Module):
    """A square root feature of the positive pre-activations, guarded by where."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 48)
        self.fc2 = nn.Linear(48, 10)
        self.safe = safe

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        root = torch.sqrt(h.clamp_min(1e-4)) if self.safe else torch.sqrt(h)
        return self.fc2(torch.where(h > 1e-4, root, torch.zeros_like(h)))


@sick(
    "non-finite", "sqrt", "fc1", why="torch.where hides the NaN of sqrt forward; backward it is 0 * inf.", holdout=True
)
def where_trap(ill: bool) -> Program:
    model = RootFeatures(not ill)
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class CosineNet(nn.Module):
    """Compares an embedding with class prototypes by angle."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 16))
        self.prototypes = nn.Parameter(torch.randn(10, 16))
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        z = F.normalize(self.body(x), dim=-1)
        w = F.normalize(self.prototypes, dim=-1)
        cosine = z @ w.t()
        return -4 * torch.acos(cosine * self.margin)


@sick("non-finite", "acos", "prototypes", why="acos beyond 1: the scaled cosine leaves its domain.", holdout=True)
def acos_domain(ill: bool) -> Program:
    model = CosineNet(1.5 if ill else 0.98)
    return Program(model, digits(image=True), torch.optim.Adam(model.parameters(), lr=1e-2), F.cross_entropy)


@sick("non-finite", "target", why="One target of the table is missing: NaN.")
def missing_target(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 1))
    batches = [(x[:, :9], x[:, 9:].clone()) for x, _ in table("diabetes")]
    if ill:
        batches[0][1][5] = math.nan
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss())
