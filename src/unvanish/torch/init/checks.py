"""Refusing, in three parts, what a user cannot have meant."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import nn

from unvanish.torch.wiring.calls import tensors_in


def check_model(where: str, model: object) -> None:
    """A module whose parameters hold numbers.

    Raises:
        ValueError: it is no module, or its parameters are on the meta device.
    """
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise ValueError(
            f"{where} got {got} as its model. Expected a torch.nn.Module. Build the model, and pass it first."
        )
    empty = [name for name, p in model.named_parameters() if p.is_meta]
    if empty:
        raise ValueError(
            f"{where}: {empty[0]} is on the meta device, where tensors hold no numbers ({len(empty)} parameters in "
            "all). Expected parameters with memory. Call model.to_empty(device='cpu') first."
        )


def check_generator(where: str, generator: object) -> None:
    """None, or a torch.Generator.

    Raises:
        ValueError: it is neither.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"{where} got generator={generator!r}. Expected a torch.Generator or None. "
            "Make one of a seed: torch.Generator().manual_seed(3)."
        )


def check_positive(where: str, name: str, value: object, why: str, mend: str = "Leave it out for the default.") -> None:
    """A finite number above zero.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{where} got {name}={value!r}. Expected a finite number above 0, {why}. {mend}")


def check_batch(where: str, inputs: Any) -> None:
    """Finite tensors that are not all empty.

    Raises:
        ValueError: there is nothing in it, or NaN or Inf.
    """
    tensors = tensors_in(inputs)
    if inputs is None or (tensors and all(tensor.numel() == 0 for tensor in tensors)):
        got = "None" if inputs is None else f"of shape {', '.join(str(tuple(t.shape)) for t in tensors)}: empty"
        raise ValueError(
            f"{where}: the batch is {got}. Expected one batch of the model's inputs, best some dozens of samples: "
            "layers are scaled to them. Pass one, such as next(iter(loader))."
        )
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{where}: the batch of shape {tuple(tensor.shape)} holds NaN or Inf. Expected finite inputs: layers "
                "are scaled to them. Clean the data, or pass other samples."
            )
