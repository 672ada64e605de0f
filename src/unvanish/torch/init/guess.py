"""A stand-in for a batch, where the user gives none: noise of the shape that the first layer reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SAMPLES = 16
_STEPS = 12
_SIZES = (32, 64, 28, 224, 8)


def guessed_inputs(model: nn.Module) -> Tensor:
    """Random inputs that the model accepts.

    Raises:
        ValueError: none was found.
    """
    tried = []
    for shape, words in _shapes(model):
        x = _noise(model, shape, words)
        try:
            with torch.no_grad():
                _run(model, x)
        except Exception as error:  # the model's own complaint about this shape; the next may fit
            tried.append(f"{tuple(shape)}: {type(error).__name__}")
            continue
        return x
    raise ValueError(
        f"No batch was given, and none could be guessed for {type(model).__name__} "
        f"(tried {'; '.join(tried[:4]) or 'nothing: no linear, convolution, recurrent or embedding module found'}). "
        "Expected a model called with one tensor. Pass one batch of its inputs: initialize_(model, batch)."
    )


def _shapes(model: nn.Module) -> list[tuple[tuple[int, ...], int | None]]:
    """Candidate input shapes of the first module with weights, with the number of words for embeddings."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            return [((_SAMPLES, module.in_features), None), ((_SAMPLES, _STEPS, module.in_features), None)]
        if isinstance(module, nn.Embedding):
            return [((_SAMPLES, _STEPS), module.num_embeddings), ((_SAMPLES,), module.num_embeddings)]
        if isinstance(module, nn.RNNBase):
            sides = (_SAMPLES, _STEPS) if module.batch_first else (_STEPS, _SAMPLES)
            return [((*sides, module.input_size), None)]
        if isinstance(module, nn.RNNCellBase):
            return [((_SAMPLES, module.input_size), None), ((_SAMPLES, _STEPS, module.input_size), None)]
        axes = _axes(module)
        if axes:
            channels: Any = module.in_channels
            return [((_SAMPLES, channels, *(size,) * axes), None) for size in _SIZES]
    return []


def _axes(module: nn.Module) -> int:
    kinds: dict[int, tuple[type[nn.Module], ...]] = {
        1: (nn.Conv1d, nn.ConvTranspose1d),
        2: (nn.Conv2d, nn.ConvTranspose2d),
        3: (nn.Conv3d, nn.ConvTranspose3d),
    }
    return next((axes for axes, types in kinds.items() if isinstance(module, types)), 0)


def _noise(model: nn.Module, shape: tuple[int, ...], words: int | None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    parameter = next(model.parameters())
    if words is not None:
        return torch.randint(words, shape, generator=generator).to(parameter.device)
    return torch.randn(shape, generator=generator).to(parameter)


def _run(model: nn.Module, x: Tensor) -> None:
    from unvanish.torch.wiring import trace

    trace(model, x)
