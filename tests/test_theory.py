"""Mean-field theory against the published table and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unvanish.theory import backward_log_gain, critical_gain, small_signal_slope


def sigmoid(u: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-u))


def relu(u: np.ndarray) -> np.ndarray:
    return np.maximum(u, 0)


def normal(u: np.ndarray) -> np.ndarray:
    return np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)


def cumulative(u: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in u])


PAIRS = {
    "tanh": (np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    "sigmoid": (sigmoid, lambda u: sigmoid(u) * (1 - sigmoid(u))),
    "relu": (relu, lambda u: (u > 0).astype(float)),
    "gelu": (lambda u: u * cumulative(u), lambda u: cumulative(u) + u * normal(u)),
    "silu": (lambda u: u * sigmoid(u), lambda u: sigmoid(u) * (1 + u * (1 - sigmoid(u)))),
}


@pytest.mark.parametrize(
    ("name", "weight", "bias", "expected"),
    [
        ("tanh", 0.9, 0.05, -0.1170),
        ("tanh", 1.3, 0.5, -0.0961),
        ("tanh", 5 / 3, 0.0, 0.0952),
        ("tanh", 2.5, 0.3, 0.2304),
        ("sigmoid", 1.0, 0.0, -1.4437),
        ("sigmoid", 4.0, 0.5, -0.4694),
        ("relu", 1.2, 0.1, -0.1645),
        ("relu", math.sqrt(2), 0.0, -0.0002),
        ("gelu", 1.2, 0.5, -0.2555),
        ("silu", 1.4, 0.3, -0.2788),
    ],
)
def test_gain_of_a_deep_net_against_the_table(name: str, weight: float, bias: float, expected: float) -> None:
    phi, derivative = PAIRS[name]
    if name == "gelu":  # erfc per node is slow: tabulate once
        grid = np.linspace(-60, 60, 24001)
        values, slopes = phi(grid), derivative(grid)
        phi, derivative = (lambda u: np.interp(u, grid, values)), (lambda u: np.interp(u, grid, slopes))
    assert backward_log_gain(phi, derivative, weight, bias) == pytest.approx(expected, abs=3e-4)


def test_gain_against_a_random_network() -> None:
    """The theory of infinite width, measured at width 400 and depth 30 in float64."""
    rng = np.random.default_rng(0)
    width, depth, sw, sb = 400, 30, 1.3, 0.5
    x = rng.standard_normal(width) * 0.7
    slopes, weights = [], []
    for _ in range(depth):
        w, b = rng.standard_normal((width, width)) * sw / math.sqrt(width), rng.standard_normal(width) * sb
        u = w @ x + b
        x = np.tanh(u)
        slopes.append(1 - x**2)
        weights.append(w)
    g = rng.standard_normal(width)
    logs = [math.log(np.linalg.norm(g))]
    for w, d in zip(reversed(weights), reversed(slopes), strict=True):
        g = w.T @ (g * d)
        logs.append(math.log(np.linalg.norm(g)))
    measured = (logs[-1] - logs[0]) / depth
    assert measured == pytest.approx(backward_log_gain(*PAIRS["tanh"], sw, sb), abs=0.02)


@pytest.mark.parametrize("name", list(PAIRS))
def test_small_signal_slope_is_the_limit_of_small_inputs(name: str) -> None:
    z = np.random.default_rng(0).standard_normal(20_000) * 1e-4
    z = np.concatenate([z, -z])
    measured = math.sqrt((PAIRS[name][1](z) ** 2).mean())
    assert small_signal_slope(name) == pytest.approx(measured, rel=1e-3)
    assert critical_gain(name) == pytest.approx(1 / measured, rel=1e-3)


def test_dead_signal_and_unknown_activation() -> None:
    assert small_signal_slope("something new") == 1.0
    assert backward_log_gain(*PAIRS["tanh"], 0.5) == pytest.approx(math.log(0.5), abs=1e-6)
