"""Layer-sequential unit variance in one pass, whatever the depth."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.init.checks import check_batch, check_generator, check_model, check_positive
from unvanish.torch.init.classic import orthogonal_
from unvanish.torch.init.layers import layers_of
from unvanish.torch.init.matrices import wide
from unvanish.torch.init.weights import Keep, protected, watched
from unvanish.torch.wiring import Op, trace


def lsuv_(
    model: nn.Module, batch: Any, *, std: float = 1.0, keep: Keep = (), generator: torch.Generator | None = None
) -> None:
    r"""Orthogonal weights, then each layer's output scaled to unit variance on a batch, in place.

    .. math:: W_l \leftarrow \sigma W_l / \text{std}(W_l h_{l-1} + b_l) \quad l = 1, 2, \dots

    Layers are visited in the order in which they run, functional calls included, within one forward pass: the next
    layer sees the output of the one just scaled. Unit variance before the activation is critical for ReLU; for tanh it
    is chaotic in deep networks, where :func:`operating_point_` is the choice.

    Args:
        model: linear and convolution layers are scaled; recurrent and attention ones stay orthogonal.
        batch: one batch of inputs.
        std: sigma.
        keep: names, modules or parameters to leave alone.
        generator: source of randomness; torch's global one where not given.

    Raises:
        ValueError: no weight to initialise, an empty batch or NaN or Inf in it, std not above 0, or an unknown name in
                ``keep``.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 20))
        >>> x = torch.randn(100, 8)
        >>> lsuv_(net, x)
        >>> round(net(x).std().item(), 3)
        1.0

    Source: Mishkin and Matas 2016 (arXiv:1511.06422), algorithm 1; one pass suffices: a layer is linear in its weight.
    """
    check_model("lsuv_", model)
    check_generator("lsuv_", generator)
    check_positive("lsuv_", "std", std, "the standard deviation of every layer's output")
    check_batch("lsuv_", batch)
    model = watched(model)
    orthogonal_(model, keep=keep, generator=generator)
    layers = layers_of(trace(model, batch), model, protected(model, keep))
    constant: list[str] = []
    done: set[int] = set()

    def scale(op: Op, args: Any, kwargs: Any, result: Tensor) -> Tensor | None:
        if op.index not in layers or id(layers[op.index].weight) in done:
            return None
        done.add(id(layers[op.index].weight))
        spread = float(wide(result).std())
        if not (math.isfinite(spread) and spread > 0):
            constant.append(layers[op.index].name)
            return None
        layers[op.index].weight.mul_(std / spread)
        again = op.function(*args, **kwargs)
        assert isinstance(again, Tensor)
        return again

    trace(model, batch, on_op=scale)
    if constant:
        warnings.warn(
            f"lsuv_: not scaled, as their output is constant or not finite: {', '.join(constant[:5])}. Expected "
            "outputs that differ over the batch. Look at what comes before them, or pass a larger batch.",
            stacklevel=2,
        )
