"""The parameters of new norms into an optimizer that exists, and out of it again."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish.torch.normalize.places import Place


def groups_for(optimizer: Optimizer | None, found: list[Place]) -> list[int | None]:
    """For each place the optimizer's group that its norm will join: that of the layer's bias, without one its weight's.

    Where biases have a group of their own (without weight decay, mostly), gains and shifts belong to it as well.
    """
    if optimizer is None:
        return [None] * len(found)
    homes = _homes(optimizer)
    joined = []
    for place in found:
        own = [place.layer.bias, *place.layer.parameters()]  # a parametrised weight is no parameter itself
        joined.append(next((homes[id(parameter)] for parameter in own if id(parameter) in homes), None))
    untrained = [place.name for place, group in zip(found, joined, strict=True) if group is None]
    if untrained:
        warnings.warn(
            f"insert_normalization_: the optimizer does not train {', '.join(untrained)}, so it does not train their "
            "norms either. Add the norms' parameters to the optimizer yourself if it should.",
            stacklevel=3,
        )
    return joined


def join(optimizer: Optimizer, model: nn.Module, norms: list[tuple[nn.Module, int | None]]) -> None:
    """Put the parameters of new norms into these groups, at the place where ``model.parameters()`` has them.

    An optimizer made afterwards from the same model has the same order then, and ``load_state_dict``, which knows
    parameters by their numbers alone, gives each its own state.
    """
    homes, before = _homes(optimizer), dict[int, tuple[str, Tensor]]()
    new = {id(parameter): group for norm, group in norms for parameter in norm.parameters()}
    for name, parameter in model.named_parameters():
        index = new.get(id(parameter), homes.get(id(parameter)))
        if index is None:
            continue
        if id(parameter) in new:
            _seat(optimizer.param_groups[index], name, parameter, before[index])
        before[index] = (name, parameter)


def leave(optimizer: Optimizer, gone: set[int]) -> None:
    """Take parameters out, with their names and their state."""
    for group in optimizer.param_groups:
        kept = [index for index, parameter in enumerate(group["params"]) if id(parameter) not in gone]
        for parameter in [p for p in group["params"] if id(p) in gone]:
            optimizer.state.pop(parameter, None)
        for key in {"params", "param_names"} & set(group):
            group[key][:] = [group[key][index] for index in kept]


def _homes(optimizer: Optimizer) -> dict[int, int]:
    return {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}


def _seat(group: dict[str, Any], name: str, parameter: nn.Parameter, before: tuple[str, Tensor]) -> None:
    """Put a parameter behind the one that is before it in the model, with its name where the group has names."""
    place = next(index for index, p in enumerate(group["params"]) if p is before[1]) + 1
    group["params"].insert(place, parameter)
    if "param_names" in group:  # an optimizer made from named_parameters(), of the model or of one around it
        names = group["param_names"]
        outer = names[place - 1].removesuffix(before[0]) if names[place - 1].endswith(before[0]) else ""
        names.insert(place, outer + name)
