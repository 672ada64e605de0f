"""State dictionaries: of this RMSprop, and of ``torch.optim.RMSprop``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.rmsprop.settings import PRESETS, widened

_AVERAGES = ("square_avg", "grad_avg", "momentum_buffer")  # named as in torch.optim.RMSprop


def complete(group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Give a loaded parameter group what it lacks; one of ``torch.optim.RMSprop`` goes on as it did there."""
    if "alpha" in group:
        group["rho"] = group.pop("alpha")
        defaults = {**defaults, "clip": None, "nesterov": False, "bias_correction": False, **PRESETS["torch"]}
    for name, value in defaults.items():
        group.setdefault(name, value)


def restore(state: dict[str, Any], saved: Mapping[str, Any], p: Tensor) -> None:
    """Put the saved averages into the state of ``p``.

    PyTorch casts a loaded state to the type of the parameter, and shares memory with the dictionary it came from.
    """
    for key in _AVERAGES:
        value = saved.get(key)
        if isinstance(value, Tensor):
            state[key] = value.detach().to(p.device, widened(p.dtype), copy=True, memory_format=torch.preserve_format)
    if isinstance(state.get("step"), Tensor) and not state["step"].is_cuda:
        state["step"] = int(state["step"])
