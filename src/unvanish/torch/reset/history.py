"""What a UnitReset remembers: steps, the ages of units, what scores keep of them, and the log."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from unvanish.torch.reset.choose import forget_units
from unvanish.torch.reset.events import ResetEvent
from unvanish.torch.reset.scores import State


@dataclass(slots=True)
class History:
    """``born``: layer -> step at which each unit was made; ``memory``: layer -> score -> what it remembers."""

    step: int = 0
    born: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, dict[str, State]] = field(default_factory=dict)
    events: list[ResetEvent] = field(default_factory=list)

    @classmethod
    def of(cls, state: Any, parameters: Mapping[str, Tensor]) -> Self:
        """From a saved state, for a model with these parameters."""
        _check(state, parameters)
        return cls(
            int(state["step"]),
            {layer: born.clone().cpu() for layer, born in state["born"].items()},
            {
                layer: {score: _moved(kept, _device(layer, parameters)) for score, kept in scores.items()}
                for layer, scores in state["memory"].items()
            },
            [ResetEvent(**{**e, "units": tuple(e["units"]), "values": tuple(e["values"])}) for e in state["events"]],
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing of it is shared."""
        return {
            "step": self.step,
            "born": {layer: born.clone() for layer, born in self.born.items()},
            "memory": copy.deepcopy(self.memory),
            "events": [asdict(event) for event in self.events],
        }

    def check(self, layer: str, units: int) -> None:
        """Has the layer as many units as are remembered?"""
        if len(self.born.get(layer, range(units))) != units:
            raise ValueError(
                f"UnitReset remembers {len(self.born[layer])} units of {layer}, which has "
                f"{units}: the loaded state is of another model. Expected the state of one with the same "
                "layers. Make a new UnitReset: only ages and the event log are lost."
            )

    def ages(self, layer: str, units: int) -> Tensor:
        """(units,) steps since each was made, or since the start."""
        return self.step - self.born.setdefault(layer, torch.zeros(units, dtype=torch.int64))

    def knows(self, event: ResetEvent) -> bool:
        """Was the same found at the last check that left units of this layer alone?"""
        before = [
            e for e in self.events if e.left_alone is not None and (e.layer, e.score) == (event.layer, event.score)
        ]
        return bool(before) and before[-1].units == event.units

    def renew(self, layer: str, units: Tensor) -> None:
        """These units, a mask, are new."""
        self.born[layer][units.cpu()] = self.step
        forget_units(self.memory[layer], units)

    def forget(self, layer: str) -> None:
        """Other units have that name now."""
        self.born.pop(layer, None)
        self.memory.pop(layer, None)


def _check(state: Any, parameters: Mapping[str, Tensor]) -> None:
    known = state if isinstance(state, Mapping) else {}
    missing = {"step", "born", "memory", "events"} - set(known)
    strange = [one for one in known.get("born", ()) if f"{one}.weight" not in parameters and one not in parameters]
    if missing or strange:
        raise ValueError(
            f"UnitReset cannot load this state: {f'it lacks {sorted(missing)}' if missing else ''}"
            f"{f'the model has no layers {strange}' if strange else ''}. It must come from state_dict() of a "
            "UnitReset of the same model. Start without it: only ages and the event log are lost."
        )


def _device(layer: str, parameters: Mapping[str, Tensor]) -> torch.device:
    return parameters.get(f"{layer}.weight", parameters.get(layer, torch.empty(0))).device


def _moved(state: State, device: torch.device) -> State:
    """A copy of what a score remembers, where the layer is."""
    return {name: tensor.to(device, copy=True) for name, tensor in state.items()}
