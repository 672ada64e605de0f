"""State dictionaries: of this RMSprop, and of ``torch.optim.RMSprop``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
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


def check_form(state_dict: object) -> None:
    """Refuse what is no state dictionary of an optimizer."""
    if isinstance(state_dict, Mapping) and {"state", "param_groups"} <= set(state_dict):
        groups, states = state_dict["param_groups"], state_dict["state"]
        parts = [*groups, *states.values()] if isinstance(groups, list) and isinstance(states, Mapping) else [None]
        if all(isinstance(part, Mapping) for part in parts) and all("params" in group for group in groups):
            return
    what = f"the keys {list(state_dict)[:5]}" if isinstance(state_dict, Mapping) else repr(state_dict)[:80]
    raise ValueError(
        f"RMSprop was given {what} as its state. Expected a dictionary with 'state' and 'param_groups'. To mend it: "
        "give what optimizer.state_dict() returned, of an RMSprop from here or of torch.optim."
    )


def check_shapes(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse the state of other parameters, which PyTorch would load: the step would read beyond its end."""
    ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in groups)
    for number, (saved_id, p) in enumerate(zip(ids, parameters, strict=False)):  # PyTorch counts them
        for key in _AVERAGES:
            value = state_dict["state"].get(saved_id, {}).get(key)
            if isinstance(value, Tensor) and value.shape != p.shape:
                raise ValueError(
                    f"RMSprop was given a state in which {key} of parameter {number} has shape {tuple(value.shape)}; "
                    f"the parameter has {tuple(p.shape)}. Expected equal shapes. To mend it: load the state of the "
                    "same model with its parameters in the same order."
                )


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
