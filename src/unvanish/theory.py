"""Mean-field facts about activations, in NumPy: slopes, critical gains, operating points, the gain of a deep net.

Sources: Poole et al. 2016 (arXiv:1606.05340), Schoenholz et al. 2017 (arXiv:1611.01232), He et al. 2015
(arXiv:1502.01852), Martens et al. 2021 (arXiv:2110.01765), Balduzzi et al. 2017 (arXiv:1702.08591).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Elementwise = Callable[[Array], Array]
_LEAK = 0.01
_FINE, _COARSE = 20001, 1001  # nodes

_SLOPES: dict[str, float] = {
    "linear": 1.0,
    "identity": 1.0,
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


def is_known(activation: str) -> bool:
    """Is this the name of an activation whose slope is known, and not counted as 1?"""
    return activation in _SLOPES


def critical_gain(activation: str) -> float:
    r"""Standard deviation of a weight times sqrt(fan_in) at which gradients neither shrink nor grow.

    .. math:: \sigma_w = 1 / s(\phi)

    Args:
        activation: name of the activation, such as "tanh" or "leaky_relu"; "linear" where there is none.

    Returns:
        The critical gain, dimensionless.

    Raises:
        ValueError: a name that is not known.

    Example:
        >>> round(critical_gain("relu"), 4)
        1.4142

    Source: Schoenholz et al. 2017, section 3, chi_1 = 1.
    """
    if not is_known(str(activation)):
        near = get_close_matches(str(activation).lower(), _SLOPES, n=1)
        raise ValueError(
            f"No activation named {activation!r} is known. Expected one of {', '.join(_SLOPES)}. "
            + (f"Did you mean {near[0]!r}?" if near else 'Use "linear" for gain 1, or initialize_ for any function.')
        )
    return 1.0 / small_signal_slope(activation)


@cache
def _gaussian_grid(nodes: int = _FINE) -> tuple[Array, Array]:
    """Nodes and weights of the standard normal, by the trapezoid rule: exact enough at kinks, unlike Gauss-Hermite."""
    z = np.linspace(-10.0, 10.0, nodes)
    weight = np.exp(-0.5 * z**2)
    return z, weight / weight.sum()


def backward_log_gain(phi: Elementwise, derivative: Elementwise, sigma_w: float, sigma_b: float = 0.0) -> float:
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


class OperatingPoint(NamedTuple):
    """Where on its curve an activation is used: ``gamma * (phi(alpha z + beta) - mean)`` has mean 0 and variance 1."""

    alpha: float
    beta: float
    mean: float
    gamma: float


def operating_point(
    phi: Elementwise,
    depth: int,
    derivative: Elementwise | None = None,
    *,
    beta: float | None = None,
    zeta: float = 1.5,
) -> OperatingPoint:
    r"""Scale and shift at which a plain net of this depth keeps its inputs apart and its gradients alive.

    .. math:: u = \alpha z + \beta,\ z \sim N(0, 1):\quad
              \frac{\alpha^2 E[\phi'(u)^2]}{Var[\phi(u)]} = \zeta^{1/L},\quad
              m = E[\phi(u)],\ \gamma = Var[\phi(u)]^{-1/2}

    The left side is the squared slope of the standardised activation, 1 for a straight line and more the more it bends;
    a net of L layers spends ``zeta`` of it in all. The shift beta is 0 where the activation is odd about (0, phi(0)), 1
    (or -1) where it is positively homogeneous like ReLU, elsewhere in [0, 4] where a change of the signal's variance
    neither grows nor decays from layer to layer.

    Args:
        phi: activation, elementwise on float64 arrays.
        depth: number of activations L in a row.
        derivative: its derivative, elementwise; by differences over the cells of the grid where not given.
        beta: the shift, where there is no choice, such as 0 for layers without bias.
        zeta: squared slope of the whole net; 1.5 is best from 10 to 1,000 layers.

    Returns:
        alpha, beta, mean and gamma, dimensionless.

    Raises:
        ValueError: the activation is nowhere close enough to a line (a step function), or depth or zeta make no sense.

    Example:
        >>> alpha, beta, mean, gamma = operating_point(np.tanh, depth=100)
        >>> round(alpha, 3), beta, round(abs(mean), 3), round(alpha * gamma, 3)
        (0.255, 0.0, 0.0, 1.06)

    Source: Martens et al. 2021, section 4 and appendix A.1 (deep kernel shaping); the four constants are here meant to
    be folded into weights and biases.
    """
    if depth < 1 or not zeta > 1:
        raise ValueError(
            f"operating_point: depth {depth} and zeta {zeta} have no solution. Expected depth >= 1 and zeta > 1. "
            "Give the number of activations in a row, and leave zeta at 1.5."
        )
    slope = math.exp(math.log(zeta) / depth)
    choices = _shifts(phi) if beta is None else [[beta]]
    shift = next((b for b in (_best(phi, derivative, shifts, slope) for shifts in choices) if b is not None), None)
    point = None if shift is None else _at_shift(phi, derivative, shift, slope)
    if point is None:
        raise ValueError(
            f"operating_point: this activation has no point where a net of depth {depth} could work: nowhere is it "
            "close enough to a line that is not flat. Expected a function that is continuous and not constant near "
            "some point in [0, 4]. Use another activation (tanh, GELU), or residual connections."
        )
    return standardized(phi, point.alpha, point.beta)


def standardized(phi: Elementwise, alpha: float, beta: float) -> OperatingPoint:
    r"""The operating point with this scale and shift: mean and standard deviation of what comes out.

    .. math:: m = E[\phi(\alpha z + \beta)],\ \gamma = Var[\phi(\alpha z + \beta)]^{-1/2},\ z \sim N(0, 1)

    Args:
        phi: activation, elementwise on float64 arrays.
        alpha: standard deviation of its input.
        beta: mean of its input.

    Returns:
        alpha, beta, mean and gamma; gamma is infinite where phi is constant.

    Example:
        >>> [round(number, 3) for number in standardized(lambda u: np.maximum(u, 0), 1.0, 0.0)]
        [1.0, 0.0, 0.399, 1.713]

    Source: Martens et al. 2021, section 4.
    """
    moments = _moments(phi, None, alpha, beta, _FINE)
    gamma = 1 / math.sqrt(moments.variance) if moments.variance else math.inf
    return OperatingPoint(alpha, beta, moments.mean, gamma)


def mirror_slope(phi: Elementwise) -> float | None:
    r"""The k of activations whose mirrored pair of units is together a straight line.

    .. math:: \phi(x) - \phi(-x) = k x \quad \forall x

    ReLU, leaky ReLU, GELU, SiLU, softplus and hardswish have it: two units with opposite weights then pass signal and
    gradient through any number of layers unchanged.

    Args:
        phi: activation, elementwise on float64 arrays.

    Returns:
        k, dimensionless; None where there is no such k, or where the activation is itself a line and needs no mirror.

    Example:
        >>> mirror_slope(lambda u: np.maximum(u, 0.1 * u)), mirror_slope(np.tanh)
        (1.1, None)

    Source: Balduzzi et al. 2017, section 4 (looks-linear initialisation), here for every activation that has a k.
    """
    x = np.geomspace(1e-3, 100.0, 400)
    above, below = phi(x), phi(-x)
    k = float((above - below) @ x / (x @ x))
    straight = np.allclose(above, k / 2 * x, rtol=1e-6, atol=1e-9)
    paired = np.allclose(above - below, k * x, rtol=1e-6, atol=1e-9)
    return round(k, 9) if paired and not straight and abs(k) > 1e-6 else None


class _Moments(NamedTuple):
    mean: float
    variance: float
    slope: float  # squared slope of the standardised activation: 1 for a line
    growth: float  # Q'(1): what becomes of a small change of the signal's variance


class _Solution(NamedTuple):
    alpha: float
    beta: float
    growth: float


def _moments(phi: Elementwise, derivative: Elementwise | None, alpha: float, beta: float, nodes: int) -> _Moments:
    z, weight = _gaussian_grid(nodes)
    with np.errstate(all="ignore"):  # exp(200 z) overflows: infinite, and so no operating point
        values = phi(alpha * z + beta)
        mean = float(weight @ values)
        centred = values - mean
        variance = float(weight @ centred**2)
    if not (1e-13 * mean) ** 2 < variance < math.inf:  # flat here up to rounding, or not a number
        return _Moments(mean, 0.0, math.inf, math.inf)
    if derivative is None:  # differences over each cell: no step size to choose, and blind to no kink
        bend = np.diff(values) / (z[1] - z[0])
        z, weight = _gaussian_cells(nodes)
        centred = (centred[1:] + centred[:-1]) / 2
    else:
        bend = alpha * derivative(alpha * z + beta)
    return _Moments(
        mean, variance, float(weight @ bend**2) / variance, float((weight * z) @ (centred * bend)) / variance
    )


@cache
def _gaussian_cells(nodes: int) -> tuple[Array, Array]:
    """Midpoints of the grid's cells, and their weights under the standard normal."""
    z, _ = _gaussian_grid(nodes)
    middle = (z[1:] + z[:-1]) / 2
    weight = np.exp(-0.5 * middle**2)
    return middle, weight / weight.sum()


def _shifts(phi: Elementwise) -> list[list[float]]:
    """Shifts worth trying by the activation's symmetry, in order of preference."""
    x = np.geomspace(1e-2, 10.0, 100)
    anywhere = [float(beta) for beta in np.linspace(0, 4, 41)]
    if np.allclose(phi(x) + phi(-x), 2 * phi(np.zeros_like(x)), rtol=1e-6, atol=1e-9):
        return [[0.0], anywhere]
    if np.allclose(phi(3 * x), 3 * phi(x), rtol=1e-6) and np.allclose(phi(-3 * x), 3 * phi(-x), rtol=1e-6):
        return [[0.0], [1.0], [-1.0]]  # only alpha / beta matters; 0 serves where the whole kink is within the budget
    return [anywhere]


def _best(phi: Elementwise, derivative: Elementwise | None, shifts: list[float], slope: float) -> float | None:
    """The first shift with Q'(1) = 1, by bisection; where there is none, the one that comes closest.

    On a coarse grid: where the shift lies exactly matters little.
    """
    points = [p for p in (_at_shift(phi, derivative, beta, slope, _COARSE) for beta in shifts) if p is not None]
    pair = next(((a, b) for a, b in pairwise(points) if (a.growth > 1) != (b.growth > 1)), None)
    if pair is None:
        return min(points, key=lambda p: abs(p.growth - 1)).beta if points else None
    low, high = pair
    for _ in range(12):
        middle = _at_shift(phi, derivative, (low.beta + high.beta) / 2, slope, _COARSE)
        if middle is None:
            break
        low, high = (middle, high) if (middle.growth > 1) == (low.growth > 1) else (low, middle)
    return low.beta


def _at_shift(
    phi: Elementwise, derivative: Elementwise | None, beta: float, slope: float, nodes: int = _FINE
) -> _Solution | None:
    """The alpha at which the squared slope has grown to its target, by doubling and bisection."""

    def straight(alpha: float) -> bool:
        return _moments(phi, derivative, alpha, beta, nodes).slope < slope

    low, high = 0.0, 1e-5
    while straight(high):
        low, high = high, 2 * high
        if high > 20:  # never bends as much as a net this shallow may: used at unit scale
            return _Solution(1.0, beta, _moments(phi, derivative, 1.0, beta, nodes).growth)
    if not low:
        return None
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if straight(middle) else (low, middle)
    return _Solution(low, beta, _moments(phi, derivative, low, beta, nodes).growth)
