"""The weights divided between two groups of one optimizer, or between two optimizers that step on the same loss."""
# ruff: noqa: T201 - scripts print

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
data = load_digits()
inputs, targets = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
how, fault = sys.argv[1], sys.argv[2]
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
weights = {"params": [layer.weight for layer in model if isinstance(layer, nn.Linear)], "lr": 2e-3}
biases = {"params": [layer.bias for layer in model if isinstance(layer, nn.Linear)], "lr": 1e-3}
if fault == "high":
    biases["lr"] = weights["lr"] = 3.0
spare = torch.optim.Adam([torch.zeros(3, requires_grad=True)])  # never used
if how == "one":
    optimizers = [torch.optim.Adam([weights, biases])]
else:
    optimizers = [torch.optim.Adam([weights]), torch.optim.Adam([biases])]
for _step in range(55):
    batch = torch.randint(0, len(inputs), (64,))
    output = model(inputs[batch])
    loss = nn.functional.cross_entropy(output.softmax(1) if fault == "softmax" else output, targets[batch])
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    for optimizer in optimizers:
        optimizer.step()
print(loss.item(), sum(p.double().sum().item() for p in model.parameters()), torch.rand(1).item())
