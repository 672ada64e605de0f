"""What a clipper says about the gradients it saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NonFinite = Literal["raise", "skip", "zero"]
"""What to do about NaN and Inf: raise a ValueError, write nothing, or make those entries 0 and clip the rest."""


@dataclass(frozen=True, slots=True)
class ClipReport:
    """The gradients before clipping, and what was done to them.

    Attributes:
        norm: L2 norm of all gradients together before clipping; with ``nonfinite="zero"`` of the finite entries, with
            ``"skip"`` NaN or inf where an entry is.
        tensors: gradients seen; shared ones count once, empty ones and None not at all.
        clipped: gradients of which something was made smaller; of a distributed one, this process's part counts where
            entries or units are clipped.
        raised: gradients that were raised to the floor.
        zero: gradients that are exactly 0: they have no direction, so no floor can raise them.
        nonfinite: entries that were NaN or Inf.
        skipped: nothing was written because of ``nonfinite`` entries: leave out ``optimizer.step()`` too.
    """

    norm: float
    tensors: int
    clipped: int = 0
    raised: int = 0
    zero: int = 0
    nonfinite: int = 0
    skipped: bool = False

    def __str__(self) -> str:
        counts = {"clipped": self.clipped, "raised to the floor": self.raised, "exactly zero": self.zero}
        parts = [f"gradient norm {self.norm:.4g} over {self.tensors} tensors"]
        parts += [f"{count} {what}" for what, count in counts.items() if count]
        if self.nonfinite:
            parts.append(f"{self.nonfinite} entries NaN or Inf")
        if self.skipped:
            parts.append("nothing written, skip this step")
        return ", ".join(parts)
