"""What CenteredUpdates centres in convolutions, transposed ones too: counted in the Jacobian, not derived."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from unvanish.torch.centered import CenteredUpdates

LAYERS: dict[str, tuple[nn.Module, int]] = {
    "convolution": (nn.Conv2d(3, 2, 3, padding=1), 2),
    "grouped": (nn.Conv1d(4, 6, 3, stride=2, groups=2), 1),
    "transposed": (nn.ConvTranspose1d(3, 2, 3), 1),
    "transposed 2d": (nn.ConvTranspose2d(3, 2, 3, padding=1), 2),
    "transposed, grouped": (nn.ConvTranspose1d(4, 6, 5, groups=2), 1),
    "upsampling": (nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1), 2),
    "upsampling by two numbers": (nn.ConvTranspose2d(3, 2, (3, 5), stride=(1, 3)), 2),
    "upsampling, grouped": (nn.ConvTranspose1d(4, 6, 5, stride=2, groups=2), 1),
    "upsampling, dilated": (nn.ConvTranspose1d(3, 2, 4, stride=4, dilation=2), 1),
    "one tap": (nn.ConvTranspose1d(3, 2, 1, stride=2), 1),
    "3d": (nn.ConvTranspose3d(2, 2, 2, stride=2), 3),
}


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer, axes = LAYERS[name]
    size = {1: 12, 2: 6, 3: 3}[axes]
    return copy.deepcopy(layer).double(), torch.ones(1, layer.in_channels, *(size,) * axes, dtype=torch.float64)


def inner(layer: nn.Module, x: Tensor) -> Tensor:
    """Outputs as far from the border as the kernel is wide: all that can meet there does."""
    margins = [(size - 1) * step for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
    return layer(x)[(..., *(slice(margin, -margin or None) for margin in margins))]


def meeting(layer: nn.Module, x: Tensor) -> Tensor:
    """One mask of the weight for each set of weights that meet in some output, by autograd."""
    rows = []
    for output in inner(layer, x).flatten():
        (row,) = torch.autograd.grad(output, layer.weight, retain_graph=True)
        rows.append(row != 0)
    masks = torch.stack([mask for mask in rows if mask.any()]).unique(dim=0)
    assert bool((masks.sum(0) == 1).all()), "each weight is in one set"
    return masks


def without_means(values: Tensor, masks: Tensor) -> Tensor:
    out = values.clone()
    for mask in masks:
        out[mask] -= values[mask].mean()
    return out


def step(layer: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    layer.weight.grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed)).double() + 0.5
    before = layer.weight.detach().clone()
    optimizer.step()
    return layer.weight.detach() - before


@pytest.mark.parametrize("name", list(LAYERS))
def test_equals_the_slow_loop_over_the_weights_that_meet(name: str) -> None:
    layer, x = prepared(name)
    masks, slow = meeting(layer, x), copy.deepcopy(layer)
    ours = CenteredUpdates(torch.optim.RMSprop(layer.parameters(), lr=0.1, momentum=0.5), nn.Sequential(layer))
    theirs = torch.optim.RMSprop(slow.parameters(), lr=0.1, momentum=0.5)

    def center(*_: object) -> None:
        slow.weight.grad.copy_(without_means(slow.weight.grad, masks))

    theirs.register_step_pre_hook(center)
    for seed in range(3):
        before = slow.weight.detach().clone()
        update = without_means(step(slow, theirs, seed), masks)
        torch.testing.assert_close(step(layer, ours, seed), update, rtol=0, atol=1e-13)
        torch.testing.assert_close(layer.weight.grad, slow.weight.grad, rtol=0, atol=1e-13)
        slow.weight.data = before + update


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_constant_input_gives_what_it_gave(name: str) -> None:
    """What centring is for: the mean of what came before does not move what comes out, at any place."""
    layer, x = prepared(name)
    before = inner(layer, x).detach()
    update = step(layer, CenteredUpdates(torch.optim.RMSprop(layer.parameters(), lr=0.1), layer), 0)
    assert update.abs().max() > 0.1
    torch.testing.assert_close(inner(layer, x).detach(), before, rtol=0, atol=1e-13)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"])
def test_copies_know_the_axes(how: object) -> None:
    layer, x = prepared("upsampling")
    other, copied = how((layer, CenteredUpdates(torch.optim.SGD(layer.parameters(), lr=0.1), layer)))  # type: ignore[operator]
    before = inner(other, x).detach()
    assert step(other, copied, 0).abs().max() > 0.01
    torch.testing.assert_close(inner(other, x).detach(), before, rtol=0, atol=1e-13)


def test_channels_last() -> None:
    layer, x = prepared("upsampling")
    layer = layer.to(memory_format=torch.channels_last)
    before = inner(layer, x).detach()
    step(layer, CenteredUpdates(torch.optim.SGD(layer.parameters(), lr=0.1), layer), 0)
    torch.testing.assert_close(inner(layer, x).detach(), before, rtol=0, atol=1e-13)
