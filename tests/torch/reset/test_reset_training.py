"""On real digits: a network that lost its units learns again with UnitReset, and not without; a healthy one is left."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from unvanish.torch.reset import Dead, Saturated, UnitReset

_pixels, _digits = load_digits(return_X_y=True)
_order = torch.randperm(len(_digits), generator=torch.Generator().manual_seed(0))
PIXELS, DIGITS = torch.tensor(_pixels / 16, dtype=torch.float32)[_order], torch.tensor(_digits)[_order]
SPLIT, HURT = 1437, 100
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def mlp(activation, width=64):
    return nn.Sequential(
        nn.Linear(64, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 10)
    )


def train(model, seed, *, score=None, hurt=None, steps=600, pixels=PIXELS, checked=64, **settings):
    """Adam on batches of 64; the first ``checked`` images, or the batch, are checked; returns accuracy and events."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    reset = UnitReset(model, optimizer, score, **settings) if score else None
    generator = torch.Generator().manual_seed(seed)
    for t in range(steps):
        rows = torch.randint(SPLIT, (64,), generator=generator)
        x, y = pixels[rows], DIGITS[rows]
        if t == HURT and hurt:
            hurt(model, x, y)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if reset:
            reset.step(x if checked == 64 else pixels[:checked])
    with torch.no_grad():
        accuracy = (model(pixels[SPLIT:]).argmax(1) == DIGITS[SPLIT:]).float().mean().item()
    return accuracy, reset.events if reset else []


def one_step_too_large(model, x, y):
    """A single gradient step of size 10, as a wrong schedule makes it: it kills most ReLUs."""
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    with torch.no_grad():
        torch._foreach_add_(list(model.parameters()), gradients, alpha=-10)


def kill(model, x, y):
    for layer in (model[0], model[2]):
        layer.bias.data -= 10


def saturate(model, x, y):
    for layer in (model[0], model[2]):
        layer.bias.data += 15 * (1 - 2 * (torch.arange(len(layer.bias)) % 2))


BOTH = (Dead(patience=3), Saturated(patience=3))


@SEEDS
@pytest.mark.parametrize(
    ("activation", "hurt", "with_reset", "without"),
    [
        (nn.ReLU, one_step_too_large, 0.92, 0.9),
        (nn.ReLU, kill, 0.94, 0.2),
        (nn.Tanh, saturate, 0.94, 0.2),
        (nn.Sigmoid, saturate, 0.7, 0.2),
    ],
    ids=["relu, one step too large", "relu, biases", "tanh, biases", "sigmoid, biases"],
)
def test_a_hurt_network_learns_again(seed, activation, hurt, with_reset, without):
    accuracies = []
    for score in (None, BOTH):
        torch.manual_seed(seed)
        accuracies.append(train(mlp(activation), seed, score=score, hurt=hurt, every=10, maturity=50)[0])
    assert accuracies[0] < without
    assert accuracies[1] > with_reset


def he_(model):
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


@SEEDS
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU])
def test_a_healthy_network_is_left_alone(seed, activation):
    torch.manual_seed(seed)
    accuracy, events = train(mlp(activation), seed, score=("dead", "saturated"), steps=700)
    assert events == []
    assert accuracy > 0.85


@SEEDS
def test_a_healthy_relu_network_is_left_alone(seed):
    """He's weights, inputs of mean zero, checks on all training images: some units fire on few, but they fire.

    On batches of 64, a unit that fires on 0.2 % of the images is taken for dead: 5 checks show it 320.
    """
    mean, std = PIXELS[:SPLIT].mean(0), PIXELS[:SPLIT].std(0) + 0.1
    torch.manual_seed(seed)
    pixels, both = (PIXELS - mean) / std, ("dead", "saturated")
    accuracy, events = train(he_(mlp(nn.ReLU)), seed, score=both, steps=1500, pixels=pixels, checked=SPLIT)
    assert events == []
    assert accuracy > 0.93


@SEEDS
def test_relus_on_raw_pixels_do_die_and_what_is_reset_is_dead(seed):
    """PyTorch's default weights on inputs >= 0: units that hardly ever fire on the 1437 training images, if at all."""
    torch.manual_seed(seed)
    model, shares = mlp(nn.ReLU), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    reset = UnitReset(model, optimizer, "dead", every=50, maturity=0)
    generator = torch.Generator().manual_seed(seed)
    for t in range(1, 501):
        rows = torch.randint(SPLIT, (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(PIXELS[rows]), DIGITS[rows]).backward()
        optimizer.step()
        before = copy.deepcopy(model) if t % 50 == 0 else model
        for event in reset.step(PIXELS[rows]):
            with torch.no_grad():
                fired = before[: int(event.layer) + 2](PIXELS[:SPLIT]) > 0
            shares += fired.float().mean(0)[list(event.units)].tolist()
            assert event.output_change == 0
    assert len(shares) >= 5
    assert sum(share == 0 for share in shares) >= 0.6 * len(shares), "most never fire"
    assert max(shares) < 0.02, "and none fires on more than 2 %"
