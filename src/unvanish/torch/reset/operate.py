"""One operation: what is read before, the units made new, what came out after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.reset.groups import UnitGroup
from unvanish.torch.reset.observe import aftermath, output_change, readings
from unvanish.torch.reset.passes import Signature
from unvanish.torch.reset.surgery import Surgeon, set_running


@dataclass(frozen=True, slots=True)
class Patient:
    """Units (U,) bool of one layer that are to be reset; ``bounded``: is their activation?"""

    group: UnitGroup
    units: Tensor
    bounded: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """By layer: could its readers' biases take over what the units gave; and the change of the model's output."""

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
    compensated = {
        p.group.layer: surgeon.reset(p.group, p.units, before, bounded=p.bounded, step=step) for p in patients
    }
    norms = tuple(norm for patient in patients for norm in patient.group.norms)
    moments, outputs = aftermath(model, inputs, norms, signature)
    for patient in patients:
        for norm in patient.group.norms:
            set_running(model, norm, patient.units, moments[norm.op])
    return Outcome(compensated, output_change(before.outputs, outputs))


def all_units(choices: list[Tensor]) -> Tensor:
    """(U,) bool: the units any score chose."""
    return torch.stack(choices).any(dim=0)
