"""What a check found and did."""

from __future__ import annotations

from dataclasses import dataclass

from unvanish.torch.reset.groups import NotResettable


@dataclass(frozen=True, slots=True)
class ResetEvent:
    """Units of one layer reset at one step for one reason.

    Attributes:
        step: of the optimizer, counted by ``UnitReset.step``.
        layer: full name of the weight that makes the units, less a final ".weight".
        units: their numbers.
        score: the name of the score that chose them.
        values: their scores: how alive each was, in the score's own measure.
        reason: in words.
        of: how many units the layer has.
        waiting: how many more were flagged, but are beyond ``max_share`` and wait for the next check.
        output_change: root mean square of the change of the model's output on the batch, relative to that of the
            output, of all resets of this step together.  None in a dry run.
        compensated: have the biases of the layers that read the units taken over all they gave on average?  False where
            one has no bias, and where what it gets of a constant unit depends on the place: with padding by zeros (in
            the layer or in front of it) and in transposed convolutions; and where the new unit is heard at once, in a
            softmax or by tied weights.  None in a dry run.
        left_alone: why nothing was done: their weights are tied to others (see :mod:`unvanish.torch.reset.ties`).
    """

    step: int
    layer: str
    units: tuple[int, ...]
    score: str
    values: tuple[float, ...]
    reason: str
    of: int
    waiting: int = 0
    output_change: float | None = None
    compensated: bool | None = None
    left_alone: str | None = None

    def __str__(self) -> str:
        shown = ", ".join(str(unit) for unit in self.units[:8]) + (", ..." if len(self.units) > 8 else "")
        text = f"step {self.step}, {self.layer}: {len(self.units)} of {self.of} units ({shown}) {self.score}"
        if self.waiting:
            text += f", {self.waiting} more wait"
        if self.left_alone is not None:
            return text + f"; left alone: {self.left_alone}"
        if self.output_change is None:
            return text + " (dry run)"
        text += f"; the output changed by {self.output_change:.1e}"
        return text if self.compensated else text + ", a bias could not take over all"


@dataclass(frozen=True, slots=True)
class ResetReport:
    """What one check found.

    Attributes:
        step: at which it was made.
        events: what was reset, or would have been in a dry run; and what was found but left alone, at every check.
        checked: the layers whose units can be reset.
        not_resettable: all other weights, with the reason.
    """

    step: int
    events: tuple[ResetEvent, ...]
    checked: tuple[str, ...]
    not_resettable: tuple[NotResettable, ...]

    @property
    def _resets(self) -> int:
        return sum(event.left_alone is None for event in self.events)

    def __str__(self) -> str:
        lines = [f"step {self.step}: {len(self.checked)} layers checked, {self._resets} with units to reset"]
        lines += [f"  {event}" for event in self.events]
        if self.not_resettable:
            lines += ["not resettable:", *(f"  {layer}" for layer in self.not_resettable)]
        return "\n".join(lines)
