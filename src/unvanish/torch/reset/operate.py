"""One operation: what is read before, the units made new, what came out after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.reset.groups import UnitGroup
from unvanish.torch.reset.observe import aftermath, output_change, readings
from unvanish.torch.reset.passes import Signature
from unvanish.torch.reset.slopes import Family
from unvanish.torch.reset.surgery import Surgeon, set_running


@dataclass(frozen=True, slots=True)
class Patient:
    """Units (U,) bool of one layer that are to be reset; ``family``: what their activation is like."""

    group: UnitGroup
    units: Tensor
    family: Family


@dataclass(frozen=True, slots=True)
class Outcome:
    """By layer: have its readers' biases taken over all that the units gave; and the change of the model's output."""

    compensated: dict[str, bool]
    output_change: float


def operate(
    model: nn.Module, inputs: Any, patients: tuple[Patient, ...], surgeon: Surgeon, *, step: int, signature: Signature
) -> Outcome:
    """Reset units from the input to the output: a later layer's new units read the earlier ones'.

    Args:
        model: theirs.
        inputs: what it is called with.
        patients: in execution order.
        surgeon: of the same model.
        step: key of the random numbers.
        signature: the calls the model makes.
    """
    readers = tuple(reader for patient in patients for reader in patient.group.readers)
    before = readings(model, inputs, readers, signature)
    compensated = {}
    for patient in patients:
        bounded, competing = patient.family.bounded, patient.family.competing
        taken_over = surgeon.reset(patient.group, patient.units, before, bounded=bounded, step=step)
        compensated[patient.group.layer] = taken_over and not competing  # a new unit takes its share from the others
    norms = tuple(norm for patient in patients for norm in patient.group.norms)
    moments, outputs = aftermath(model, inputs, norms, signature)
    for patient in patients:
        set_running(model, patient.group.norms, patient.units, moments)
    return Outcome(compensated, output_change(before.outputs, outputs))


def all_units(choices: list[Tensor]) -> Tensor:
    """(U,) bool: the units any score chose."""
    return torch.stack(choices).any(dim=0)
