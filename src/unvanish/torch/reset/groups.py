"""A layer whose units can be reset: what makes them, what they pass through, and what reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unvanish.torch.reset.units import UnitAxis
from unvanish.torch.reset.weights import WeightPlan


@dataclass(frozen=True, slots=True)
class NotResettable:
    """A weight whose units are left alone, and why.

    Attributes:
        layer: full name of the weight, less a final ".weight".
        why: in words.
    """

    layer: str
    why: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.why}"


@dataclass(frozen=True, slots=True)
class ActivationPlan:
    """The activation of the units.

    Attributes:
        op: index of the call.
        axis: where the units lie in its input and output.
        overwrites: index of the call whose output it overwrites, None where it is not in place.
    """

    op: int
    axis: UnitAxis
    overwrites: int | None


@dataclass(frozen=True, slots=True)
class NormPlan:
    """A normalisation that the units pass through.

    Attributes:
        op: index of the call.
        parameters: (role, full name) of its weight and bias.
        entries: the unit of each entry of these, from 1; shaped as they are.
        axis: where the units lie in its input.
        running: path of the module with its running statistics, None where it has none.
    """

    op: int
    parameters: tuple[tuple[str, str], ...]
    entries: Tensor
    axis: UnitAxis
    running: str | None


@dataclass(frozen=True, slots=True)
class Reader:
    """A layer that reads the units: index of its call, its weight, and the unit of each of its input features."""

    op: int
    plan: WeightPlan
    features: UnitAxis

    def of_features(self, features: Tensor, read: Tensor) -> Tensor:
        """What is read of these features (bool), zero for all others."""
        shape = [1] * read.ndim
        shape[self.plan.channel_axis] = -1
        return torch.where(features.reshape(shape), read, 0.0)


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """The units of one layer.

    Attributes:
        layer: full name of the weight, less a final ".weight".
        op: index of the call that makes them.
        plan: how its weight is laid out.
        units: how many there are.
        activation: the one they have.
        norms: what normalises them on the way.
        readers: all layers that read them.
    """

    layer: str
    op: int
    plan: WeightPlan
    units: int
    activation: ActivationPlan
    norms: tuple[NormPlan, ...]
    readers: tuple[Reader, ...]


def layer_name(weight: str) -> str:
    """The name of a layer by that of its weight."""
    return weight.removesuffix(".weight")
