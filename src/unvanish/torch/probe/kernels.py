"""The compiled loops of the probe: small tensors, read where they lie, summed in float64."""

from __future__ import annotations

import math
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
    """Root mean square, mean, and standard deviation over the samples, of ``outer`` x samples x features."""
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
    count = outer * size
    return math.sqrt(squares / count), total / count, math.sqrt(max(0.0, deviations) / count)


@compiled()
def norms(table: Any, like: Any, result: Any) -> None:
    """L2 norm of each of many tensors; ``table`` = their addresses and their sizes."""
    for k in range(len(result)):
        result[k] = math.sqrt(wide_sum(array(table[0, k], table[1, k], like)))


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
def _units(address: Any, parts: Any, bounds: Any, like: Any, highest: Any) -> Any:
    """Writes the largest derivative of each unit of ``parts`` = outer x units x inner to ``highest``.

    ``bounds`` = op, flat, zero.  Returns the share of derivatives that lie below ``flat``, and the share of units that
    have none above ``zero``.
    """
    outer, width, inner = parts
    op, flat, zero = bounds
    features = width * inner
    x = array(address, outer * features, like)
    peaks = np.full(features, -np.inf, np.float32)
    low, total = _steepest(x, op, np.float32(flat), peaks)
    if not np.isfinite(total):
        _mark_nan(x, op, peaks)
    dead = 0
    for u in range(width):
        best = peaks[u * inner]
        for i in range(u * inner + 1, (u + 1) * inner):
            best = best if best >= peaks[i] or np.isnan(best) else peaks[i]
        highest[u] = best
        dead += best <= zero
    return low / (outer * features), dead / width


@compiled()
def units(addresses: Any, parts: Any, bounds: Any, like: Any, highest: Any, shares: Any) -> None:
    """The units of many tensors of one shape, a row at ``highest``, and of ``shares``, for each."""
    width = parts[1]
    rows = array(highest, len(addresses) * width, like)
    for k in range(len(addresses)):
        row = rows[k * width : (k + 1) * width]
        shares[k, 0], shares[k, 1] = _units(addresses[k], parts, bounds, like, row)


@compiled()
def outputs(addresses: Any, values: Any, parts: Any, bounds: Any, like: Any, highest: Any, found: Any) -> None:
    """The moments of ``values`` = outer x samples x features, and the units, one tensor after the other."""
    outer, samples, features = values
    width = parts[1]
    rows = array(highest, len(addresses) * width, like)
    for k in range(len(addresses)):
        row = rows[k * width : (k + 1) * width]
        found[k, 0], found[k, 1], found[k, 2] = moments(addresses[k], outer, samples, features, like)
        found[k, 3], found[k, 4] = _units(addresses[k], parts, bounds, like, row)
