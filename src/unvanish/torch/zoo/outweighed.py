"""Losses of several terms: one that outweighs the others, and penalties that do not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, sick, well
from unvanish.torch.zoo._data import digits, pixels

# mypy: disable-error-code="no-any-return"


class ImageVAE(nn.Module):
    """A variational autoencoder with two hidden layers on each side."""

    def __init__(self, width: int = 128, code: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_mu = nn.Linear(width, code)
        self.fc_var = nn.Linear(width, code)
        self.decoder = nn.Sequential(nn.Linear(code, width), nn.ReLU(), nn.Linear(width, 64), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        return self.decoder(mu + torch.randn_like(mu) * (0.5 * log_var).exp()), mu, log_var


@sick("loss-mismatch", "loss", why="The divergence is summed over batch and code, the error averaged over all pixels.")
def vae_summed_divergence(ill: bool) -> Program:
    model = ImageVAE()

    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        rebuilt, mu, log_var = output
        divergence = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())
        error = F.binary_cross_entropy(rebuilt, target, reduction="mean" if ill else "sum")
        return error + divergence

    batches = [(x, x) for x, _ in pixels()]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=2e-3), loss)


class SparseCode(nn.Module):
    """A classifier whose hidden units are meant to be few."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Sequential(nn.Linear(64, 96), nn.ReLU())
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.code(x)
        return self.head(code), code


def _sparse(weight: float) -> Program:
    model = SparseCode()

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        scores, code = output
        return F.cross_entropy(scores, target) + weight * code.abs().sum()

    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=1e-3), loss)


@sick("loss-mismatch", "loss", why="The penalty on a code is summed over batch and units.", holdout=True)
def summed_sparsity(ill: bool) -> Program:
    return _sparse(0.05 if ill else 1e-5)


@well("A penalty on the weights, written by hand, that leaves the network room to learn.")
def penalty_by_hand() -> Program:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(net(x), y) + 1e-3 * sum(p.abs().sum() for p in net.parameters())

    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=2e-3), objective=objective)
