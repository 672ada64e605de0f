"""RMSprop one number at a time, in Python floats: slow, and written apart from the implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence


def oracle(start: Sequence[float], gradients: Sequence[Sequence[float]], **given: object) -> list[float]:
    """The parameters after these gradients, from the settings of ``RMSprop``."""
    s = {
        "lr": 1e-3, "rho": 0.9, "eps": 1e-7, "eps_inside": True, "momentum": 0.0, "lr_in_momentum": True,
        "nesterov": False, "centered": False, "initial_accumulator": 0.0, "bias_correction": False,
        "weight_decay": 0.0, "decoupled_weight_decay": True, "clip": None, "maximize": False, **given,
    }  # fmt: skip
    parameters = list(start)
    state = [{"v": s["initial_accumulator"], "m": 0.0, "b": 0.0} for _ in parameters]
    for t, gradient in enumerate(gradients, start=1):
        norm = math.sqrt(math.fsum(g * g for g in gradient if math.isfinite(g)))
        scale = 1.0 if s["clip"] is None or norm <= s["clip"] else s["clip"] / norm
        for i, g in enumerate(gradient):
            if math.isfinite(g):
                parameters[i] = _one(parameters[i], g * scale, state[i], t, s)
    return parameters


def _one(x: float, g: float, state: dict, t: int, s: dict) -> float:
    rho, decay = s["rho"], s["weight_decay"]
    if s["maximize"]:
        g = -g
    if decay and s["decoupled_weight_decay"]:
        x -= s["lr"] * decay * x
    elif decay:
        g += decay * x
    state["v"] = rho * state["v"] + (1 - rho) * g * g
    state["m"] = rho * state["m"] + (1 - rho) * g
    unbiased = 1 - rho**t if s["bias_correction"] else 1.0
    v, m = state["v"] / unbiased, state["m"] / unbiased
    if s["centered"]:
        v = max(v - m * m, 2.220446049250313e-16 / (1 - rho) * v)
    u = g / (math.sqrt(v + s["eps"]) if s["eps_inside"] else math.sqrt(v) + s["eps"])
    if s["momentum"]:
        if s["lr_in_momentum"]:
            u *= s["lr"]
        state["b"] = s["momentum"] * state["b"] + u
        u = u + s["momentum"] * state["b"] if s["nesterov"] else state["b"]
        return x - (u if s["lr_in_momentum"] else s["lr"] * u)
    return x - s["lr"] * u
