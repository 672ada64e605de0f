"""The compiled loops of the probe: small tensors, read where they lie, summed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from unvanish.torch.loops.kernels import wide_sum
from unvanish.torch.loops.numba_tools import SUMS, array, compiled

_DOUBTFUL = 1e-6  # of the squares: what is left of a difference of squares has lost digits below
TANH, SIGMOID, RELU, SLOPES = range(4)  # what a tensor holds: outputs of an op, or derivatives
OPS = {"tanh": TANH, "sigmoid": SIGMOID, "relu": RELU}


@compiled(inline="never", fastmath=SUMS)
def _differences(x: Any, sums: Any) -> Any:
    """Sum of squares, and of the squares of what differs from the first sample; adds the differences to ``sums``.

    The difference of two float32 numbers is exact in float64, or nearly so: equal samples give zero.
    """
    features = len(sums)
    first = x[:features]
    squares = deviations = 0.0
    for start in range(0, len(x), features):
        row = x[start : start + features]
        for f in range(features):
            value = np.float64(row[f])
            difference = value - np.float64(first[f])
            squares += value * value
            deviations += difference * difference
            sums[f] += difference
    return squares, deviations


@compiled(inline="never", fastmath=SUMS)
def _centred(x: Any, means: Any) -> Any:
    """Sum of the squares of what differs from the first sample and the mean of such differences."""
    features = len(means)
    first = x[:features]
    deviations = 0.0
    for start in range(0, len(x), features):
        row = x[start : start + features]
        for f in range(features):
            difference = np.float64(row[f]) - np.float64(first[f]) - means[f]
            deviations += difference * difference
    return deviations


@compiled()
def moments(address: Any, outer: Any, samples: Any, features: Any, like: Any) -> Any:
    """Sum, sum of squares, and of squares about the mean over the samples, of ``outer`` x samples x features."""
    total = squares = deviations = 0.0
    size = samples * features
    x = array(address, outer * size, like)
    for start in range(0, outer * size, size):
        part = x[start : start + size]
        sums = np.zeros(features)
        square, about_first = _differences(part, sums)
        spread = about_first
        for f in range(features):
            total += sums[f] + samples * np.float64(part[f])
            spread -= sums[f] * sums[f] / samples
        if spread < _DOUBTFUL * about_first:  # the first sample stands far out
            spread = _centred(part, sums / samples)
        squares += square
        deviations += spread
    return total, squares, deviations


@compiled()
def many_moments(addresses: Any, outer: Any, samples: Any, features: Any, like: Any, result: Any) -> None:
    """The same of many tensors of one shape, a row of ``result`` for each."""
    for k in range(len(addresses)):
        result[k, 0], result[k, 1], result[k, 2] = moments(addresses[k], outer, samples, features, like)


@compiled()
def square_sums(addresses: Any, size: Any, like: Any, result: Any) -> None:
    """Sum of the squares of each of many tensors of one size."""
    for k in range(len(addresses)):
        result[k] = wide_sum(array(addresses[k], size, like))


@compiled(inline="always")
def _slope(value: Any, op: Any, one: Any, zero: Any) -> Any:
    if op == TANH:
        return one - value * value
    if op == SIGMOID:
        return (one - value) * value
    if op == RELU:
        return one if value > zero else zero * value
    return abs(value)


@compiled(inline="never", fastmath=SUMS)
def _steepest(x: Any, op: Any, flat: Any, peaks: Any) -> Any:
    """Raises ``peaks`` to each unit's largest derivative; how many lie below ``flat``, and the sum of all."""
    one, zero = np.float32(1), np.float32(0)
    low, total, units = 0, zero, len(peaks)
    for start in range(0, len(x), units):
        row = x[start : start + units]
        for u in range(units):
            slope = _slope(row[u], op, one, zero)
            peaks[u] = max(peaks[u], slope)
            low += slope < flat
            total += slope
    return low, total


@compiled(inline="never")
def _mark_nan(x: Any, op: Any, peaks: Any) -> None:
    """Where a unit has a derivative that is not a number, its largest is not a number either."""
    one, zero = np.float32(1), np.float32(0)
    for i in range(len(x)):
        slope = _slope(x[i], op, one, zero)
        if np.isnan(slope):
            peaks[i % len(peaks)] = slope


@compiled()
def units(addresses: Any, outer: Any, inner: Any, op: Any, flat: Any, zero: Any, highest: Any, counts: Any) -> None:
    """Largest derivative of each unit of many tensors of ``outer`` x units x ``inner``, a row for each.

    ``counts``: how many derivatives lie below ``flat``, and how many units have none above ``zero``.
    """
    width = highest.shape[1]
    features = width * inner
    for k in range(len(addresses)):
        x = array(addresses[k], outer * features, highest)
        peaks = np.full(features, -np.inf, highest.dtype)
        counts[k, 0], total = _steepest(x, op, flat, peaks)
        if not np.isfinite(total):
            _mark_nan(x, op, peaks)
        for u in range(width):
            best = peaks[u * inner]
            for i in range(u * inner + 1, (u + 1) * inner):
                best = best if best >= peaks[i] or np.isnan(best) else peaks[i]
            highest[k, u] = best
            counts[k, 1] += best <= zero
