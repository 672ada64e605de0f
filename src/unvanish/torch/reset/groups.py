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
        op: index of the call, the last where users wrote it by hand as several.
        axis: where the units lie in its input and output.
        source: index of the call whose output it reads.
        members: the calls it is made of, none where it is one.
        in_place: does it overwrite its input?
    """

    op: int
    axis: UnitAxis
    source: int
    members: tuple[int, ...]
    in_place: bool

    @property
    def before_is_kept(self) -> bool:
        """Has its input to be kept until it is called?"""
        return self.in_place or bool(self.members)


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
    """A layer that reads the units.

    Attributes:
        op: index of its call.
        plan: how its weight is laid out.
        features: the unit of each of its input features.
        kept: has its weight another use, so that the units cannot be taken out of it?
        takes_over: has its bias no other use, so that it can take over what the units gave?
    """

    op: int
    plan: WeightPlan
    features: UnitAxis
    kept: bool = False
    takes_over: bool = True

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
        plan: how its weight is laid out.
        units: how many there are.
        activations: the one they have, in each call of the layer.
        norms: what normalises them on the way.
        readers: all calls of layers that read them.
        left_alone: why they are judged but never reset: their weights are tied to others in a way that forbids it.
    """

    layer: str
    plan: WeightPlan
    units: int
    activations: tuple[ActivationPlan, ...]
    norms: tuple[NormPlan, ...]
    readers: tuple[Reader, ...]
    left_alone: str | None = None

    @property
    def heard_at_once(self) -> bool:
        """Will somebody read new units from the start, with weights that cannot be set to zero?"""
        return any(reader.kept for reader in self.readers)


def layer_name(weight: str) -> str:
    """The name of a layer by that of its weight."""
    return weight.removesuffix(".weight")
