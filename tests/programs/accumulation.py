"""Gradient accumulation over four micro-batches, clipped, with bf16 autocast or a GradScaler by argument."""
# ruff: noqa: T201 - scripts print

import sys

import torch
from torch import nn

torch.manual_seed(0)
mode = sys.argv[1] if len(sys.argv) > 1 else "plain"
model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
teacher = nn.Linear(16, 4).requires_grad_(False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
scaler = torch.amp.GradScaler("cpu", enabled=mode in ("scaler", "overflow"), init_scale=1e38, backoff_factor=1e-2)
half = torch.float16 if mode == "overflow" else torch.bfloat16
for _step in range(30):
    for _ in range(4):
        x = torch.randn(32, 16)
        target = teacher(x).argmax(1)
        with torch.autocast("cpu", half, enabled=mode in ("autocast", "overflow")):
            loss = nn.functional.cross_entropy(model(x), target) / 4
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
print(loss.item(), sum(p.double().sum().item() for p in model.parameters()), scaler.get_scale())
