"""What was inserted, what was not and why; and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Inserted:
    """A norm that is new.

    Attributes:
        layer: name of the layer behind which it works; the norm is its child, ``<layer>.norm``.
        norm: the norm, as its constructor shows it.
        group: index of the optimizer's parameter group its parameters joined, None without one.
    """

    layer: str
    norm: str
    group: int | None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A layer that got no norm, and the reason."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True)
class NormalizationReport:
    """Where norms were inserted and where not; ``print(report)`` shows it.

    Attributes:
        kind: "batch", "layer", "group" or "rms".
        inserted: the new norms, in execution order.
        left_out: the other layers.
    """

    kind: str
    inserted: tuple[Inserted, ...]
    left_out: tuple[LeftOut, ...]
    _undo: Callable[[], None] = field(repr=False, compare=False)

    def remove(self) -> None:
        """Take the norms out of the model, and their parameters and state out of the optimizer."""
        self._undo()

    def __str__(self) -> str:
        """One line for each layer."""
        lines = [f"normalisation ({self.kind}): {len(self.inserted)} inserted, {len(self.left_out)} layers without"]
        lines += [f"  + {new.layer}.norm = {new.norm}" for new in self.inserted]
        lines += [f"  - {old.layer}: {old.reason}" for old in self.left_out]
        return "\n".join(lines)
