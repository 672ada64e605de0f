"""Numbers that lost their history on the way, and attention that is shown the wrong places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from unvanish.torch.zoo._case import Program, sick
from unvanish.torch.zoo._data import pixels, table
from unvanish.torch.zoo._equation import misfit

# mypy: disable-error-code="no-any-return"


@sick(
    "disconnected", "loss", why="u'' without create_graph: the residual of the equation is a constant to the weights."
)
def plain_derivative(ill: bool) -> Program:
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return misfit(net, batch, 100, lost=ill)

    batches = [(torch.rand(64, 1), torch.tensor([[0.0], [1.0]])) for _ in range(12)]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), objective=objective)


class Sampled(nn.Module):
    """A VAE written with torch.distributions."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
        self.plain = plain

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.encoder(x).chunk(2, dim=-1)
        posterior = Independent(Normal(mean, log_scale.exp()), 1)
        prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
        code = posterior.sample() if self.plain else posterior.rsample()
        return self.decoder(code), kl_divergence(posterior, prior)


@sick("disconnected", "decoder", why="sample() for rsample(): of the reconstruction the encoder hears nothing.")
def sampled_code(ill: bool) -> Program:
    model = Sampled(ill)

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = batch[0]
        output, divergence = net(x)
        return F.mse_loss(output, x, reduction="none").sum(1).mean() + 0.01 * divergence.mean()

    return Program(model, pixels(), torch.optim.Adam(model.parameters(), lr=2e-3), objective=objective)


class Padded(nn.Module):
    """Sums up sequences of different lengths by what a learned query reads of them."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 32, padding_idx=0)
        self.places = nn.Parameter(torch.randn(24, 32) * 0.1)
        self.query = nn.Parameter(torch.randn(1, 1, 32) * 0.1)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 3)
        self.turned = turned

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places[: ids.shape[1]]
        padding = ids != 0 if self.turned else ids == 0
        read, _ = self.attention(self.query.expand(len(ids), -1, -1), x, x, key_padding_mask=padding)
        return self.head(read[:, 0])


def sentences() -> list[tuple[Tensor, Tensor]]:
    """The wine's measurements as words of ten sorts, up to a length that differs from one to the next."""
    batches = []
    for x, y in table("wine"):
        ids = 1 + (x * 2 + 5).clamp(0, 9).long()
        lengths = torch.randint(6, ids.shape[1], (len(ids), 1))
        batches.append((ids.masked_fill(torch.arange(ids.shape[1]) >= lengths, 0), y))
    return batches


@sick("disconnected", "attention", why="The padding mask is turned over: attention reads the padding alone.")
def padding_mask_turned(ill: bool) -> Program:
    model = Padded(ill)
    return Program(model, sentences(), torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())
