"""RMSprop against vanishing gradients: ``article_rmsprop.py`` in PyTorch, with unvanish's RMSprop.

The same formula as Keras', v = rho v + (1 - rho) g^2 and theta -= lr g / sqrt(v + eps): from equal weights and data
both programs follow the same loss curve.

    pip install "unvanish[torch]" && python examples/article_rmsprop_torch.py
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from unvanish.torch.rmsprop import RMSprop

SAMPLES, FEATURES, EPOCHS = 100, 10, 100


def create_model() -> nn.Module:
    """10 inputs, 10 ReLU units, one output."""
    return nn.Sequential(nn.Linear(FEATURES, 10), nn.ReLU(), nn.Linear(10, 1))


def rmsprop_optimizer(
    parameters: Iterable[Tensor], learning_rate: float = 0.001, decay_rate: float = 0.9, epsilon: float = 1e-8
) -> RMSprop:
    """RMSprop with the article's spelling: ``decay_rate`` is ``rho``."""
    return RMSprop(parameters, lr=learning_rate, rho=decay_rate, eps=epsilon)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, epochs: int = EPOCHS
) -> list[float]:
    """Full-batch steps; prints and returns the loss before each."""
    losses = []
    for epoch in range(1, epochs + 1):
        loss = torch.mean(torch.square(y - model(x)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"Epoch {epoch}, Loss: {losses[-1]}")
    return losses


def main() -> None:
    """Train, then predict one new sample."""
    torch.manual_seed(0)
    model = create_model()
    train(model, rmsprop_optimizer(model.parameters()), torch.randn(SAMPLES, FEATURES), torch.randn(SAMPLES, 1))
    print("Prediction:", model(torch.randn(1, FEATURES)).item())


if __name__ == "__main__":
    main()
