"""Where the units of a layer lie in a tensor: along one axis, each entry of that axis belonging to one unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NOBODY = 0  # in a map of units, entries are numbered from 1: padding with zeros makes entries of nobody


@dataclass(frozen=True, slots=True)
class UnitAxis:
    """The units along one axis of a tensor.

    Attributes:
        axis: counted from the end, so that a batch of another shape has it in the same place.
        owners: (entries of that axis,) the number of the unit from 1, ``NOBODY`` for padding.
        units: how many units the layer has.
        plain: is entry i simply unit i?
    """

    axis: int
    owners: Tensor
    units: int
    plain: bool = False

    def sum(self, values: Tensor) -> Tensor:
        """(U,) float64 sums over everything but the units."""
        entries = values.movedim(self.axis, -1).flatten(0, -2).sum(dim=0, dtype=torch.float64)
        return self.per_unit(entries, "sum")

    def max(self, values: Tensor) -> Tensor:
        """(U,) float64 maxima over everything but the units; NaN wins."""
        entries = values.movedim(self.axis, -1).flatten(0, -2).amax(dim=0).to(torch.float64)
        return self.per_unit(entries, "amax")

    def count(self, values: Tensor) -> Tensor:
        """(U,) float64: how many values each unit has in a tensor of this shape."""
        entries = torch.full_like(self.owners, values.numel() // len(self.owners), dtype=torch.float64)
        return self.per_unit(entries, "sum")

    def per_unit(self, entries: Tensor, how: str = "sum") -> Tensor:
        """(U,) one value for each unit from one for each entry of the axis."""
        if self.plain:
            return entries
        result = entries.new_zeros(self.units + 1)
        return result.scatter_reduce_(0, self.owners, entries, how)[1:]

    def entries_of(self, chosen: Tensor) -> Tensor:
        """(entries,) bool: those that belong to the chosen units (U,) bool."""
        return torch.cat([chosen.new_zeros(1), chosen])[self.owners]


def axis_of(owners: Tensor, units: int) -> UnitAxis | None:
    """The one axis along which a map of owners (of a tensor's shape) varies; None where there is no such axis."""
    for axis in range(-1, -owners.ndim - 1, -1):
        found = along(owners, axis, units)
        if found is not None and int((found.owners.unique() != NOBODY).sum()) == units:
            return found
    return None


def along(owners: Tensor, axis: int, units: int) -> UnitAxis | None:
    """The units along this axis; None where another axis matters as well."""
    flat = owners.movedim(axis, -1).flatten(0, -2)
    entries = flat.amax(dim=0)
    if bool(((flat != entries) & (flat != NOBODY)).any()):
        return None
    straight = torch.arange(1, units + 1, device=entries.device)
    return UnitAxis(axis, entries.long(), units, plain=torch.equal(entries.long(), straight))
