"""What every step leaves behind, looked at or not: its losses and its count.

Between two looks this is all of ours that runs: ``heard`` at a backward pass, ``counted`` at a step. Both are written
for speed, and answer False wherever more than counting is to be done; ``Watch`` does it then.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from unvanish.torch.run.losses import Value, value_of
from unvanish.torch.run.track import Track

_MOST_LOSSES = 4096  # kept while no step comes
_thread = threading.get_ident


class Tally:
    """The counts of all optimizers of a program, and the losses since the last step of any of them."""

    __slots__ = ("_last", "_owner", "_quiet", "losses", "scaled", "turn")

    def __init__(self) -> None:
        self.losses: list[Value] = []
        self.turn = 0  # steps of all optimizers together
        self.scaled: tuple[Tensor, Tensor, Any] | None = None  # by a GradScaler: the result, the loss, the scaler
        self._last: list[Value] = []
        self._quiet: dict[int, Track] = {}
        self._owner = _thread()

    def relax(self, tracks: Iterable[Track]) -> None:
        """Only count from here on: the steps of these optimizers, and all backward passes."""
        self._quiet = {id(optimizer): track for track in tracks if (optimizer := track.reference()) is not None}

    def attend(self) -> None:
        """Leave every event to ``Watch``."""
        self._quiet = {}

    def relaxed(self, optimizer: Optimizer) -> bool:
        """Is its step one that is only counted?"""
        track = self._quiet.get(id(optimizer))
        return track is not None and track.reference() is optimizer

    def heard(self, loss: object) -> bool:
        """A backward pass begins; True if its loss was noted and that was all."""
        if not self._quiet or type(loss) is not Tensor or _thread() != self._owner:
            return False
        if self.scaled is not None and self.scaled[0] is loss:
            loss = self.scaled[1]
        if loss.numel() != 1 or len(self.losses) >= _MOST_LOSSES:
            return False
        value = value_of(loss)
        if type(value) is float and value - value != 0.0:  # NaN or Inf, in less time than a call takes
            return False
        self.scaled = None
        self.losses.append(value)
        return True

    def note(self, value: Value) -> None:
        """The loss of one backward pass; of very many without a step, the latest are kept."""
        self.losses = [*self.losses[-_MOST_LOSSES // 2 :], value]

    def forget(self) -> None:
        """A step was made that nobody counts."""
        if self.losses:
            self._last, self.losses = self.losses, []

    def counted(self, optimizer: Optimizer) -> bool:
        """A step was made; True if it was counted and that was all."""
        track = self._quiet.get(id(optimizer))
        if track is None or track.count >= track.wake or _thread() != self._owner or track.reference() is not optimizer:
            return False
        self.count(track)
        return True

    def count(self, track: Track) -> None:
        """One more step: its losses are those since the step before, or that step's where there was none."""
        self.forget()
        track.losses.add(self._last)
        track.count += 1
        self.turn += 1
        track.turn = self.turn
