"""Mean-field theory against the published table and Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unvanish.theory import (
    backward_log_gain,
    critical_gain,
    mirror_slope,
    operating_point,
    small_signal_slope,
    standardized,
)


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


def gelu(u: np.ndarray) -> np.ndarray:
    """Tabulated: erfc per node is slow."""
    grid = np.linspace(-60, 60, 240_001)
    return np.interp(u, grid, _GELU)


_GELU = PAIRS["gelu"][0](np.linspace(-60, 60, 240_001))


def softplus(u: np.ndarray) -> np.ndarray:
    return np.logaddexp(u, 0)


def silu(u: np.ndarray) -> np.ndarray:
    return u * np.exp(-np.logaddexp(-u, 0))


def stable_sigmoid(u: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(-u, 0))


@pytest.mark.parametrize(
    ("phi", "alphas"),
    [
        (np.tanh, (0.54, 0.255, 0.136, 0.075)),
        (stable_sigmoid, (1.08, 0.51, 0.271, 0.150)),
        (relu, (0.62, 0.39, 0.30, 0.26)),
        (silu, (0.437, 0.130, 0.041, 0.0129)),
    ],
)
def test_operating_points_against_the_table(phi: Callable, alphas: tuple[float, ...]) -> None:
    for depth, alpha in zip((10, 100, 1000, 10_000), alphas, strict=True):
        assert operating_point(phi, depth).alpha == pytest.approx(alpha, rel=0.02)


def test_operating_points_of_gelu_against_the_table() -> None:
    for depth, alpha in ((10, 0.28), (100, 0.084), (1000, 0.026)):
        point = operating_point(gelu, depth)
        assert point.alpha == pytest.approx(alpha, rel=0.04)
        assert 0.2 < point.beta < 0.3


def test_sigmoid_is_tanh_at_twice_the_scale() -> None:
    tanh, sigmoid_ = operating_point(np.tanh, 100), operating_point(stable_sigmoid, 100)
    assert sigmoid_.alpha == pytest.approx(2 * tanh.alpha, rel=1e-9)
    assert sigmoid_.gamma == pytest.approx(2 * tanh.gamma, rel=1e-9)
    assert sigmoid_.mean == pytest.approx(0.5)


CURVES = {
    "tanh": (np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    "sigmoid": (stable_sigmoid, lambda u: stable_sigmoid(u) * stable_sigmoid(-u)),
    "relu": (relu, lambda u: (u > 0).astype(float)),
    "softplus": (softplus, stable_sigmoid),
    "silu": (silu, lambda u: stable_sigmoid(u) * (1 + u * stable_sigmoid(-u))),
    "elu": (lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))), lambda u: np.exp(np.minimum(u, 0))),
    "user's own": (lambda u: np.sin(u) + 0.1 * u**2, lambda u: np.cos(u) + 0.2 * u),
}


@pytest.mark.parametrize("name", list(CURVES))
@pytest.mark.parametrize("depth", [5, 50])
def test_operating_point_by_monte_carlo(name: str, depth: int) -> None:
    """Mean, variance and squared slope of the standardised activation, from random numbers and the true derivative."""
    phi, derivative = CURVES[name]
    alpha, beta, mean, gamma = operating_point(phi, depth)
    z = np.random.default_rng(0).standard_normal(2_000_000)
    z = np.concatenate([z, -z])
    u = alpha * z + beta
    standard = gamma * (phi(u) - mean)
    assert standard.mean() == pytest.approx(0, abs=2e-3)
    assert standard.var() == pytest.approx(1, abs=5e-3)
    slope = (alpha * gamma) ** 2 * np.mean(derivative(u) ** 2)
    assert depth * math.log(slope) == pytest.approx(math.log(1.5), rel=0.15 if depth == 50 else 0.03)


@pytest.mark.parametrize("name", list(CURVES))
def test_given_and_measured_derivative_agree(name: str) -> None:
    phi, derivative = CURVES[name]
    told, measured = operating_point(phi, 30, derivative), operating_point(phi, 30)
    assert told == pytest.approx(measured, rel=2e-3, abs=2e-3)


@given(depth=st.integers(1, 3000), zeta=st.floats(1.05, 4), scale=st.floats(0.2, 5))
@settings(max_examples=25, deadline=None)
def test_operating_point_of_a_rescaled_activation(depth: int, zeta: float, scale: float) -> None:
    """phi(s u) is phi, used at alpha / s: the standardised activation is the same function."""
    point = operating_point(np.tanh, depth, zeta=zeta)
    scaled = operating_point(lambda u: np.tanh(scale * u), depth, zeta=zeta)
    if point.alpha != 1 and scaled.alpha != 1:  # else it bends too little at any scale, and is taken as it is
        assert scaled.alpha * scale == pytest.approx(point.alpha, rel=1e-6)
        assert scaled.gamma == pytest.approx(point.gamma, rel=1e-6)


def test_deeper_nets_are_straighter() -> None:
    alphas = [operating_point(np.tanh, depth).alpha for depth in (2, 20, 1000, 10**6)]
    assert alphas == sorted(alphas, reverse=True)


def test_a_single_relu_is_used_at_its_kink() -> None:
    """One layer may bend by 1.5 in all; ReLU at its kink bends by 1.467, by hand."""
    alpha, beta, _, gamma = operating_point(relu, 1)
    assert (alpha, beta) == (1, 0)
    assert 0.5 * gamma**2 == pytest.approx(0.5 / (0.5 - 0.5 / math.pi), rel=1e-6)
    assert operating_point(relu, 2).beta == 1


def test_mirrored_relu_finds_the_side_that_lives() -> None:
    point, turned = operating_point(relu, 100), operating_point(lambda u: -relu(-u), 100)
    assert (point.beta, turned.beta) == (1, -1)
    assert turned.alpha == pytest.approx(point.alpha)


def test_straight_activation_needs_no_operating_point() -> None:
    alpha, beta, mean, gamma = operating_point(lambda u: 3 * u, 100)
    assert (alpha, beta) == (1, 0)
    assert (mean, gamma) == (pytest.approx(0, abs=1e-12), pytest.approx(1 / 3))


@pytest.mark.parametrize("phi", [np.sign, np.zeros_like, lambda u: np.where(u > 0, np.nan, u)])
def test_no_operating_point(phi: Callable) -> None:
    with pytest.raises(ValueError, match="no point where"):
        operating_point(phi, 100)


@pytest.mark.parametrize(("depth", "zeta"), [(0, 1.5), (-3, 1.5), (10, 1.0), (10, math.nan)])
def test_senseless_budget(depth: int, zeta: float) -> None:
    with pytest.raises(ValueError, match="Expected depth >= 1 and zeta > 1"):
        operating_point(np.tanh, depth, zeta=zeta)


@pytest.mark.parametrize(
    ("phi", "k"),
    [
        (relu, 1.0),
        (lambda u: np.maximum(u, 0.2 * u), 1.2),
        (silu, 1.0),
        (PAIRS["gelu"][0], 1.0),
        (softplus, 1.0),
        (lambda u: u * np.clip(u + 3, 0, 6) / 6, 1.0),
        (lambda u: -softplus(-u), 1.0),
        (np.tanh, None),
        (stable_sigmoid, None),
        (np.abs, None),
        (lambda u: np.clip(u, 0, 6), None),
        (lambda u: u * np.tanh(softplus(u)), None),
        (lambda u: 2 * u, None),
    ],
)
def test_mirror_slope(phi: Callable, k: float | None) -> None:
    assert mirror_slope(phi) == (None if k is None else pytest.approx(k))


def test_standardized_by_hand() -> None:
    """ReLU of a standard normal: mean 1/sqrt(2 pi), variance 1/2 - 1/(2 pi)."""
    _, _, mean, gamma = standardized(relu, 1.0, 0.0)
    assert mean == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-6)
    assert gamma**-2 == pytest.approx(0.5 - 0.5 / math.pi, rel=1e-6)
    assert standardized(np.zeros_like, 1.0, 0.0).gamma == math.inf
