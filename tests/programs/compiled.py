"""torch.compile around a model; counts how often it was compiled."""
# ruff: noqa: T201 - scripts print

import sys

import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
compiled = []


def backend(graph, inputs):
    compiled.append(graph)
    return graph.forward


model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
fast = torch.compile(model, backend=backend if len(sys.argv) < 2 else sys.argv[1])
x, y = torch.randn(64, 16), torch.randint(0, 4, (64,))
for _ in range(25):
    loss = nn.functional.cross_entropy(fast(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item(), sum(p.double().sum().item() for p in model.parameters()))
print("compiled", len(compiled))
