"""The closed lists of words that everything else is written in: kinds of sites, severities, cause ids."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "linear",
    "convolution",
    "recurrent",
    "attention",
    "activation",
    "softmax",
    "normalization",
    "embedding",
    "merge",
    "loss",
    "other",
]
Severity = Literal["low", "medium", "high"]
# losses that measure how far predictions are from numbers
DISTANCES = ("mse", "l1", "smooth_l1", "huber")

Cause = Literal[
    "saturation",
    "dead-units",
    "initialization",
    "depth",
    "normalization",
    "recurrent-depth",
    "input-scale",
    "loss-mismatch",
    "disconnected",
    "precision",
    "learning-rate-high",
    "learning-rate-low",
    "exploding",
    "non-finite",
    "symmetry",
]
