"""A generative adversarial network as it is usually written: two networks, two optimizers, two losses a step."""
# ruff: noqa: T201 - scripts print

import sys

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1), nn.Sigmoid())
optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
criterion = nn.BCELoss()
for _ in range(60):
    real = torch.randn(64, 2) * 0.5 + 1
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
    discriminator.zero_grad()
    criterion(discriminator(real), ones).backward()
    fake = generator(torch.randn(64, 8))
    criterion(discriminator(fake.detach()), zeros).backward()
    optimizer_d.step()
    generator.zero_grad()
    if "cut" in sys.argv:
        fake = fake.detach()
    loss = criterion(discriminator(fake), ones)
    loss.backward()
    optimizer_g.step()
print(loss.item(), sum(p.double().sum().item() for p in generator.parameters()))
