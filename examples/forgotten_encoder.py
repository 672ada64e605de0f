"""The optimizer holds the head only, and the encoder keeps its random weights.

unvanish run examples/forgotten_encoder.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
inputs, target = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)

encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4), nn.ReLU())
model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(4, 10)})
optimizer = torch.optim.Adam(model["head"].parameters(), lr=1e-2)

for epoch in range(3):
    for rows in torch.randperm(len(inputs)).split(64):
        loss = nn.functional.cross_entropy(model["head"](model["encoder"](inputs[rows])), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
