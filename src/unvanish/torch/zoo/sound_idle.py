"""Programs that learn though parts of them get no gradient: frozen, unused, rare, closed or idle on purpose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, well
from unvanish.torch.zoo._data import ALICE, digits

# mypy: disable-error-code="no-any-return"


class FrozenBackbone(nn.Module):
    """Random features, frozen on purpose, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)
        for parameter in self.backbone.parameters():
            nn.init.normal_(parameter, std=0.12)
            parameter.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@well("The backbone is frozen: requires_grad is False and the optimizer does not have it.")
def frozen_backbone() -> Program:
    model = FrozenBackbone()
    return Program(model, digits(), torch.optim.Adam(model.head.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class TwoHeads(nn.Module):
    """A classifier with an auxiliary head for a later stage."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.classifier = nn.Linear(64, 10)
        self.auxiliary = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.trunk(x))


@well("The auxiliary head is never called: its gradient is None.")
def unused_head() -> Program:
    model = TwoHeads()
    return Program(model, digits(), torch.optim.AdamW(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


def words() -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Is the middle letter of a window a vowel? Windows of letters, in a vocabulary mostly unused."""
    codes = torch.tensor([ord(c) for c in ALICE])
    vowel = torch.tensor([c in "aeiou" for c in ALICE])
    starts = torch.randint(len(codes) - 5, (12, 64))
    windows = starts.unsqueeze(-1) + torch.arange(5)
    return [(codes[w], vowel[w[:, 2]].long()) for w in windows], 2000


@well("Embedding with rare rows: most get no gradient in a batch.")
def rare_embedding_rows() -> Program:
    batches, size = words()
    model = nn.Sequential(nn.Embedding(size, 16), nn.Flatten(), nn.Linear(80, 32), nn.ReLU(), nn.Linear(32, 2))
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())


@well("nn.Embedding(sparse=True): the gradient is a sparse tensor.", holdout=True)
def sparse_embedding() -> Program:
    batches, size = words()
    model = nn.Sequential(nn.Embedding(size, 8, sparse=True), nn.Flatten(), nn.Linear(40, 2))
    return Program(model, batches, torch.optim.SGD(model.parameters(), lr=0.5), F.cross_entropy)


class Mixture(nn.Module):
    """Top-1 mixture of eight experts."""

    def __init__(self, experts: int = 8) -> None:
        super().__init__()
        self.router = nn.Linear(64, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(-1)
        weight, chosen = gate.max(-1)
        out = x.new_zeros(x.shape[0], 10)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if mine.any():
                out[mine] = weight[mine].unsqueeze(1) * expert(x[mine])
        return out


@well("A mixture whose router leaves experts idle for whole batches.")
def idle_experts() -> Program:
    model = Mixture()
    with torch.no_grad():
        model.router.bias[3] = -2.0
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class LoRA(nn.Module):
    """A frozen linear layer with a low-rank adapter whose B starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.t() @ self.lora_b.t()


@well("LoRA: B is zero, so A has no gradient in the first step.")
def lora() -> Program:
    model = nn.Sequential(
        LoRA(nn.Linear(64, 64)), nn.ReLU(), LoRA(nn.Linear(64, 64)), nn.ReLU(), LoRA(nn.Linear(64, 10))
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    return Program(model, digits(), torch.optim.AdamW(trainable, lr=1e-2), nn.CrossEntropyLoss())


class ReZero(nn.Module):
    """x + alpha f(x) with alpha = 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.fc2(F.relu(self.fc1(x)))


@well("ReZero: 20 branches are closed at the start and their weights have gradient zero.")
def rezero() -> Program:
    model = nn.Sequential(nn.Linear(64, 48), *[ReZero(48) for _ in range(20)], nn.Linear(48, 10))
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


@well("Wide and sparse: nine of ten ReLUs are off for any sample, few for all.")
def sparse_wide_relu() -> Program:
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
    with torch.no_grad():
        model[0].weight.mul_(3.0)  # type: ignore[operator]
        model[0].bias.fill_(-2.2)  # type: ignore[operator]
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())
