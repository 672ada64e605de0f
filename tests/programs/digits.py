"""An ordinary training script: a small network that trains, its arguments, and a hash of what it learned."""
# ruff: noqa: T201 - scripts print

import hashlib
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
data = load_digits()
inputs = torch.tensor(data.data / 16, dtype=torch.float32)
targets = torch.tensor(data.target)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
criterion = nn.CrossEntropyLoss()
for step in range(60):
    model.train()
    batch = torch.randint(0, len(inputs), (64,))
    loss = criterion(model(inputs[batch]), targets[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 20 == 0:
        model.eval()
        with torch.no_grad():
            print("accuracy", (model(inputs).argmax(1) == targets).float().mean().item())
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
print(loss.item(), digest, torch.rand(1).item())
print(__name__, __file__, sys.argv, Path.cwd(), sys.path[0])
sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
