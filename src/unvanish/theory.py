"""Mean-field facts about activations, in NumPy: slopes, critical gains, the gain of a deep plain net.

Sources: Poole et al. 2016 (arXiv:1606.05340), Schoenholz et al. 2017 (arXiv:1611.01232), He et al. 2015
(arXiv:1502.01852).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_LEAK = 0.01

_SLOPES: dict[str, float] = {
    "tanh": 1.0,
    "sigmoid": 0.25,
    "relu": math.sqrt(0.5),
    "leaky_relu": math.sqrt((1 + _LEAK**2) / 2),
    "prelu": math.sqrt((1 + 0.25**2) / 2),
    "gelu": 0.5,
    "silu": 0.5,
    "mish": 0.6,
    "elu": 1.0,
    "selu": 1.0,
    "celu": 1.0,
    "softplus": 0.5,
    "log_sigmoid": 0.5,
    "hardtanh": 1.0,
    "relu6": math.sqrt(0.5),
    "hardsigmoid": 1 / 6,
    "hardswish": 0.5,
    "softsign": 1.0,
    "sin": 1.0,
    "cos": 1.0,
    "threshold": math.sqrt(0.5),
}


def small_signal_slope(activation: str) -> float:
    r"""Root-mean-square derivative of an activation for a small, centred signal.

    .. math:: s = \lim_{q \to 0} \sqrt{E[\phi'(\sqrt{q} z)^2]},\quad z \sim N(0, 1)

    It is the best slope a layer can count on: critical weights have gain ``1 / s``.

    Args:
        activation: name such as "tanh", "sigmoid", "relu"; an unknown name counts as slope 1.

    Returns:
        The slope, dimensionless.

    Example:
        >>> small_signal_slope("sigmoid")
        0.25

    Source: He et al. 2015, section 2.2 (ReLU); Schoenholz et al. 2017, section 3.
    """
    return _SLOPES.get(activation, 1.0)


def critical_gain(activation: str) -> float:
    r"""Standard deviation of a weight times sqrt(fan_in) at which gradients neither shrink nor grow.

    .. math:: \sigma_w = 1 / s(\phi)

    Args:
        activation: name of the activation.

    Returns:
        The critical gain, dimensionless.

    Example:
        >>> round(critical_gain("relu"), 4)
        1.4142

    Source: Schoenholz et al. 2017, section 3, chi_1 = 1.
    """
    return 1.0 / small_signal_slope(activation)


@cache
def _gaussian_grid() -> tuple[Array, Array]:
    """Nodes and weights of the standard normal, by the trapezoid rule: exact enough at kinks, unlike Gauss-Hermite."""
    z = np.linspace(-10.0, 10.0, 20001)
    weight = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    return z, weight


def backward_log_gain(
    phi: Callable[[Array], Array], derivative: Callable[[Array], Array], sigma_w: float, sigma_b: float = 0.0
) -> float:
    r"""Expected log-gain of the gradient norm per layer at the fixed point of a wide random net.

    .. math:: q^* = \sigma_w^2 E[\phi(\sqrt{q^*} z)^2] + \sigma_b^2,\quad
              \tfrac12 \ln \chi_1 = \tfrac12 \ln \sigma_w^2 E[\phi'(\sqrt{q^*} z)^2]

    Args:
        phi: activation, elementwise on float64 arrays.
        derivative: its derivative, elementwise.
        sigma_w: weight standard deviation times sqrt(fan_in), dimensionless.
        sigma_b: bias standard deviation.

    Returns:
        ln of the factor by which the gradient norm changes per layer going backward (negative: it shrinks).

    Example:
        >>> round(backward_log_gain(np.tanh, lambda u: 1 - np.tanh(u) ** 2, 0.9, 0.05), 4)
        -0.117

    Source: Schoenholz et al. 2017, equations 2 to 4.
    """
    z, weight = _gaussian_grid()
    q = 1.0
    for _ in range(2000):
        after = sigma_w**2 * float(weight @ phi(math.sqrt(q) * z) ** 2) + sigma_b**2
        if abs(after - q) <= 1e-12 * max(q, 1e-30):
            break
        q = after
    chi = sigma_w**2 * float(weight @ derivative(math.sqrt(q) * z) ** 2)
    return 0.5 * math.log(chi)
