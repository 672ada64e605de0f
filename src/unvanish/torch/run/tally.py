"""Between two looks, all of ours that runs: the losses and steps of a program are counted, and nothing else is done.

``heard`` runs at a backward pass, ``relaxed`` and ``counted`` around a step. Each call into C takes some tenths
of a microsecond there, where the caches are full of the user's own work: hence the few of them. Each answers False
wherever more than counting is to be done, which ``Watch`` then does.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from unvanish.torch.run.losses import Losses, Value, value_of
from unvanish.torch.run.track import Track

_MOST_LOSSES = 4096  # kept while no step comes
_thread, _is_compiling = threading.get_ident, torch.compiler.is_compiling


class Tally:
    """The losses since the last step of any optimizer, and the optimizers whose steps are only counted."""

    __slots__ = ("_ends", "_last", "_losses", "_owner", "_quiet", "compiled", "scaled")

    def __init__(self) -> None:
        self.scaled: tuple[Tensor, Tensor, Any] | None = None  # by a GradScaler: the result, the loss, the scaler
        self.compiled = False  # the compiler may be reading this very code
        self._losses: list[Value] = []
        self._last: list[Value] = []
        self._quiet: dict[int, Losses] = {}
        self._ends: list[weakref.ref[Optimizer]] = []
        self._owner = _thread()

    def relax(self, tracks: Iterable[Track]) -> None:
        """Only count from here on: the steps of these optimizers, and all backward passes."""
        alive = [(optimizer, track) for track in tracks if (optimizer := track.reference()) is not None]
        self._quiet = quiet = {id(optimizer): track.losses for optimizer, track in alive}
        self._ends = [weakref.ref(one, partial(_drop, quiet, id(one))) for one, _ in alive]

    def attend(self) -> None:
        """Leave every event to ``Watch``."""
        self._quiet, self._ends = {}, []

    def heard(self, loss: object) -> bool:
        """A backward pass begins; True if its loss was noted and that was all."""
        if (self.compiled and _is_compiling()) or not self._quiet or type(loss) is not Tensor:
            return False
        if not loss.requires_grad or _thread() != self._owner or len(self._losses) >= _MOST_LOSSES:
            return False
        if self.scaled is not None and self.scaled[0] is loss:
            loss = self.scaled[1]
        try:
            value = value_of(loss)
        except RuntimeError:  # it has many elements
            return False
        if type(value) is float and value - value != 0.0:  # NaN or Inf
            return False
        self.scaled = None
        self._losses.append(value)
        return True

    def relaxed(self, optimizer: Optimizer) -> bool:
        """Is its step one that is only counted?"""
        return not (self.compiled and _is_compiling()) and id(optimizer) in self._quiet

    def counted(self, optimizer: Optimizer) -> bool:
        """A step was made; True if it was counted and that was all."""
        if self.compiled and _is_compiling():
            return False
        track = self._quiet.get(id(optimizer))
        if track is None or len(track.values) >= track.wake:
            return False
        losses = self._losses
        if len(losses) == 1 and type(losses[0]) is float:
            self._last = losses
            self._losses = []
            track.values.append(losses[0])
        else:
            self.count(track)
        return True

    def count(self, track: Losses) -> None:
        """One more step: its losses are those since the step before, or that step's where there was none."""
        self.forget()
        track.add(self._last)

    def note(self, value: Value) -> None:
        """The loss of one backward pass; of very many without a step, the latest are kept."""
        self._losses = [*self._losses[-_MOST_LOSSES // 2 :], value]

    def clear(self) -> None:
        """The losses noted since the last step were none."""
        self._losses = []

    def forget(self) -> None:
        """A step was made that nobody counts."""
        if self._losses:
            self._last, self._losses = self._losses, []


def _drop(quiet: dict[int, Losses], key: int, _ended: weakref.ref[Optimizer]) -> None:
    """Python may give the identity of what is gone to the next object."""
    quiet.pop(key, None)
