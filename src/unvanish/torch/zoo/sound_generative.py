"""Programs with a player, a code or a loss too many that learn all the same: GAN, VAE, autoencoder, two tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, well
from unvanish.torch.zoo._data import digits, pixels, table

# mypy: disable-error-code="no-any-return"


class GAN(nn.Module):
    """Generator and discriminator of 8x8 digits in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
        self.discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))


@well("The discriminator's step of a GAN: the fakes are detached on purpose, the generator has its own step.")
def gan_discriminator_step() -> Program:
    model = GAN()

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        assert isinstance(net, GAN)
        real, noise = batch
        fake = net.generator(noise).detach()
        right, wrong = net.discriminator(real), net.discriminator(fake)
        return F.softplus(-right).mean() + F.softplus(wrong).mean()

    batches = [(x, torch.randn(len(x), 16)) for x, _ in pixels()]
    optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    return Program(model, batches, optimizer, objective=objective)


class VAE(nn.Module):
    """Variational autoencoder of the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.mu = nn.Linear(64, 8)
        self.log_var = nn.Linear(64, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)
        return self.decoder(z), mu, log_var


@well("A VAE: two losses of different size, noise in the forward pass.")
def vae() -> Program:
    model = VAE()

    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        logits, mu, log_var = output
        rebuilt = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()
        kl = -0.5 * (1 + log_var - mu.pow(2) - log_var.exp()).sum(1).mean()
        return rebuilt + kl

    batches = [(x, x) for x, _ in pixels()]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), loss)


class MultiTask(nn.Module):
    """One trunk, a class head and a sum-of-pixels head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.label = nn.Linear(64, 10)
        self.ink = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {"label": self.label(h), "ink": self.ink(h)}


@well("Two losses a hundred times apart in size, and outputs in a dict.")
def uneven_losses() -> Program:
    model = MultiTask()

    def loss(output: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
        label = F.cross_entropy(output["label"], target["label"])
        return label + 0.01 * F.mse_loss(output["ink"].squeeze(1), target["ink"])

    batches = [(x, {"label": y, "ink": x.mean(1)}) for x, y in digits()]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), loss)


class Autoencoder(nn.Module):
    """Weight-tied autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, 24)
        self.bias = nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x))
        return F.linear(code, self.encoder.weight.t(), self.bias)


@well("An autoencoder with tied weights: one parameter, used twice.")
def tied_autoencoder() -> Program:
    model = Autoencoder()
    batches = [(x, x) for x, _ in table("digits")]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss())
