"""Xavier, He and orthogonal initialisation of a whole model, with the fans that each kind of layer really has."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import nn

from unvanish.theory import critical_gain
from unvanish.torch.init.checks import check_generator, check_model, check_positive
from unvanish.torch.init.matrices import normal_, semi_orthogonal, uniform_
from unvanish.torch.init.weights import Keep, Weight, weights_of


def xavier_(model: nn.Module, *, gain: float = 1.0, keep: Keep = (), generator: torch.Generator | None = None) -> None:
    r"""Xavier (Glorot) uniform weights and zero biases, in place.

    .. math:: W_{ij} \sim U(-a, a),\quad a = g \sqrt{6 / (\text{fan}_{in} + \text{fan}_{out})}

    The fans are those of the map a weight really is: per group of a grouped convolution, per gate of an LSTM, per
    projection of an attention layer, and swapped where a transposed convolution swaps them.

    Args:
        model: its linear, convolution, recurrent and attention layers are changed; embeddings and norms are not.
        gain: g.
        keep: names, modules or parameters to leave alone; frozen parameters are left alone anyway.
        generator: source of randomness; torch's global one where not given.

    Raises:
        ValueError: no weight to initialise, a gain that is not above 0, or an unknown name in ``keep``.

    Example:
        >>> net = nn.Linear(300, 300)
        >>> xavier_(net)
        >>> round(net.weight.std().item(), 2), net.bias.abs().max().item()
        (0.06, 0.0)

    Source: Glorot and Bengio 2010 (AISTATS), equation 16.
    """
    check_positive("xavier_", "gain", gain, "the factor on Xavier's bound")

    def draw(weight: Weight) -> None:
        uniform_(weight.tensor, gain * math.sqrt(6 / sum(weight.layout.fans)), generator)

    _fill("xavier_", model, keep, generator, draw)


def he_(
    model: nn.Module, *, activation: str = "relu", keep: Keep = (), generator: torch.Generator | None = None
) -> None:
    r"""He (Kaiming) normal weights and zero biases, in place.

    .. math:: W_{ij} \sim N(0, g^2 / \text{fan}_{in}),\quad g = 1 / \sqrt{E[\phi'(0^\pm)^2]} = \sqrt 2 \text{ for ReLU}

    Args:
        model: as for :func:`xavier_`.
        activation: name of the activation behind the layers, for the gain.
        keep: names, modules or parameters to leave alone.
        generator: source of randomness.

    Raises:
        ValueError: no weight to initialise, or an unknown activation or name in ``keep``.

    Example:
        >>> net = nn.Linear(200, 200)
        >>> he_(net)
        >>> round(net.weight.std().item(), 1)
        0.1

    Source: He et al. 2015 (arXiv:1502.01852), equation 10.
    """
    gain = critical_gain(activation)

    def draw(weight: Weight) -> None:
        normal_(weight.tensor, gain / math.sqrt(weight.layout.fans[0]), generator)

    _fill("he_", model, keep, generator, draw)


def orthogonal_(
    model: nn.Module, *, gain: float = 1.0, keep: Keep = (), generator: torch.Generator | None = None
) -> None:
    r"""Random (semi-)orthogonal weights and zero biases, in place.

    .. math:: W W^T = g^2 I \text{ or } W^T W = g^2 I

    One matrix for each group of a grouped convolution (over inputs and kernel together), gate and projection.

    Args:
        model: as for :func:`xavier_`.
        gain: g.
        keep: names, modules or parameters to leave alone.
        generator: source of randomness.

    Raises:
        ValueError: no weight to initialise, a gain that is not above 0, or an unknown name in ``keep``.

    Example:
        >>> net = nn.Linear(8, 5)
        >>> orthogonal_(net)
        >>> torch.allclose(net.weight @ net.weight.T, torch.eye(5), atol=1e-5)
        True

    Source: Saxe et al. 2014 (arXiv:1312.6120), section 4.
    """
    check_positive("orthogonal_", "gain", gain, "the factor on an orthogonal matrix")

    def draw(weight: Weight) -> None:
        layout = weight.layout
        flat = semi_orthogonal(
            layout.groups, layout.outputs, layout.inputs * layout.taps, like=weight.tensor, generator=generator
        )
        kernels = flat.reshape(layout.groups, layout.outputs, layout.inputs, layout.taps)
        layout.write(weight.tensor, gain * kernels)

    _fill("orthogonal_", model, keep, generator, draw)


@torch.no_grad()
def _fill(
    where: str, model: nn.Module, keep: Keep, generator: torch.Generator | None, draw: Callable[[Weight], None]
) -> None:
    check_model(where, model)
    check_generator(where, generator)
    weights = weights_of(model, keep)
    if not weights:
        raise ValueError(
            f"{where}: no weight to initialise in {type(model).__name__}. Expected linear, convolution, recurrent or "
            "attention modules with trainable weights. Unfreeze them, take them out of keep=, or run a lazy model once "
            "first."
        )
    names = {weight.name for weight in weights}
    left = sorted(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim >= 2 and name.endswith(("original0", "original1", "original"))
    )
    if left:
        warnings.warn(
            f"Weights computed by a parametrisation are left as they are: {', '.join(left[:5])}. "
            f"{len(names)} other weights were initialised.",
            stacklevel=3,
        )
    for weight in weights:
        draw(weight)
        if weight.bias is not None:
            weight.bias.zero_()
