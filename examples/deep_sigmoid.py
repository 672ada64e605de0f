"""Twenty sigmoid layers with the default initialisation: the loss stays at ln 10.

unvanish run examples/deep_sigmoid.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
inputs, target = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)

layers = [nn.Linear(64, 64), nn.Sigmoid()]
for _ in range(19):
    layers += [nn.Linear(64, 64), nn.Sigmoid()]
model = nn.Sequential(*layers, nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for epoch in range(3):
    for rows in torch.randperm(len(inputs)).split(64):
        loss = nn.functional.cross_entropy(model(inputs[rows]), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
