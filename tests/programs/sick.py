"""Twenty sigmoid layers with default weights: the first of them get nothing."""
# ruff: noqa: T201 - scripts print

import torch
from sklearn.datasets import load_digits
from torch import nn


def main():
    torch.manual_seed(0)
    data = load_digits()
    inputs = torch.tensor(data.data / 16, dtype=torch.float32)
    targets = torch.tensor(data.target)
    layers = [layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.Sigmoid())]
    net = nn.Sequential(*layers, nn.Linear(64, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(60):
        batch = torch.randint(0, len(inputs), (64,))
        loss = nn.functional.cross_entropy(net(inputs[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(loss.item())


main()
