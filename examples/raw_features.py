"""Features between 0.1 and 1,700 go in as they are. A factory for the command line, no training loop needed.

unvanish diagnose examples/raw_features.py:make
"""

import torch
from sklearn.datasets import load_wine
from torch import nn


def make():
    torch.manual_seed(0)
    features, labels = load_wine(return_X_y=True)
    inputs, target = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    batches = [(inputs[rows], target[rows]) for rows in torch.randperm(len(inputs)).split(32)]
    model = nn.Sequential(nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    return model, nn.CrossEntropyLoss(), batches, torch.optim.SGD(model.parameters(), lr=0.05)
