"""What happens in the user's program, event by event: backward passes and optimizer steps of any number of networks.

Between two looks these events are only counted, by ``Tally``, and no module is hooked.
"""

from __future__ import annotations

import math
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from unvanish.torch.run.birth import find_birth_unwatched
from unvanish.torch.run.derivatives import Derivatives
from unvanish.torch.run.losses import value_of
from unvanish.torch.run.orphans import Orphans
from unvanish.torch.run.outputs import Outputs
from unvanish.torch.run.roots import Roots
from unvanish.torch.run.tally import Tally
from unvanish.torch.run.track import Look, Track, left_over
from unvanish.torch.run.trial import keep
from unvanish.torch.run.window import Gradients, Pending, Seen, Window
from unvanish.torch.views.births import find_backward_birth
from unvanish.types import NonFinite

_now = time.monotonic
_pid, _thread, _is_compiling = os.getpid, threading.get_ident, torch.compiler.is_compiling
_MOST_TRACKS = 8
_SHORT = 200  # steps of a trial before the training, such as a search for the learning rate
_EAGER = "torch.compile is set aside at the steps that are looked at: they run eager"


class Enough(BaseException):
    """The wanted number of steps is done: leaves the script through everything but a bare ``except``."""


class ByHand(Optimizer):
    """Stands in where a program changes its weights itself: every backward pass ends one step and begins the next."""

    def __init__(self) -> None:
        self.param_groups = [{"params": [], "lr": math.nan}]


class Watch:
    """All optimizers of a program, and the one window of full sight they share."""

    def __init__(self, looked: Callable[[Track, Look], None], say: Callable[[str], None], limit: int | None) -> None:
        """Nothing is seen before ``start``.

        Args:
            looked: told of every probed step.
            say: told, in words, of what the user should know at once.
            limit: optimizer steps after which the script is stopped.
        """
        self.roots = Roots()
        self.tracks: list[Track] = []
        self.window: Window | None = None
        self.notes: list[str] = []
        self.backwards = 0
        self.unclear = 0  # backward passes of no single number
        self.unwatched = 0
        self._passed: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()  # has it made a step?
        self.broken: str | None = None
        self._looked, self._say, self._limit = looked, say, limit
        self.tally = Tally()
        self.turn = 0
        self._stepping: Track | None = None
        self._since = self._until = _now()
        self._timed = 0
        self._birth: NonFinite | None = None
        self.outputs = Outputs()
        self.orphans = Orphans()
        self._stance: Any = None
        self._hand: ByHand | None = None
        self.derivatives = Derivatives()
        self.strangers = 0  # backward passes and steps of other threads
        self._process, self._thread = _pid(), _thread()

    def elsewhere(self) -> bool:
        """In a forked worker, another thread, or under the compiler."""
        return _is_compiling() or _pid() != self._process or _thread() != self._thread or self.broken is not None

    def pass_by(self) -> None:
        """A backward pass or a step happened elsewhere."""
        self.strangers += not _is_compiling() and _pid() == self._process and _thread() != self._thread

    # ---- events ----------------------------------------------------------------------------------------------

    def created(self, optimizer: Optimizer) -> None:
        """An optimizer was made: the first step of training is near."""
        if self._find(optimizer) is not None or optimizer in self._passed:
            return
        self._settle()
        track = Track(optimizer, self.backwards, self.turn)
        over = [old for old in self.tracks if old.reference() is None and old.shape == track.shape]
        if (over and not self._trial_runs(over)) or len(self.tracks) >= _MOST_TRACKS:
            self._passed[optimizer] = False
            return
        self.tracks.append(track)
        self._since = _now() if not self.turn else self._since
        self._arrange()

    def compiled(self) -> None:
        """``torch.compile`` was called."""
        self.tally.compiled = True
        if self.window is not None and self._stance is None:
            self._go_eager()

    def scaled(self, result: Any, loss: Any, scaler: Any) -> None:
        """A GradScaler multiplied the loss."""
        if isinstance(result, Tensor) and isinstance(loss, Tensor) and scaler.is_enabled():
            self.tally.scaled = (result, loss, scaler)

    def backward_begins(self, tensors: Any, *, by_grad: bool = False) -> Pending | None:
        """The user called ``backward``, or ``torch.autograd.grad`` in its place."""
        if not by_grad and self.derivatives.backward():
            self._forget_passes()
        loss = tensors if isinstance(tensors, Tensor) else next(iter(tensors), None)
        if loss is None or loss.numel() != 1 or not loss.requires_grad:
            self.unclear += 1
            return None
        if not self.backwards and not self.tracks:
            self._hand = ByHand()
            self.created(self._hand)
        elif self._hand is not None:
            self.step_ended(self._hand)
        self.backwards += 1
        scaler = None
        if self.tally.scaled is not None and self.tally.scaled[0] is loss:
            _, loss, scaler = self.tally.scaled
        self.tally.scaled = None
        value = value_of(loss)
        self.tally.note(value)
        if self.window is not None:
            return self.window.begin(loss, None if scaler is None else scaler.get_scale(), self.backwards)
        if self._hand is not None:
            self.step_begins(self._hand)
        if isinstance(value, float) and not math.isfinite(value) and self._birth is None:
            self._find_birth(loss)
        return None

    def backward_ended(self, pending: Pending, gradients: Gradients | None = None) -> None:
        """It is done; ``pending`` is what ``backward_begins`` returned, ``gradients`` what ``grad`` did."""
        if self.window is None:
            return
        pending.seen.apart = gradients is not None
        if gradients is None:
            gradients = {key: leaf.grad for key, leaf in pending.seen.leaves.items()}
        seen = self.window.end(pending, gradients)
        if self._birth is None:
            self._birth = seen.birth or self._backward_birth(seen, gradients)
        if self._hand is None:
            self.orphans.hear(
                seen, self.roots.names.parameters, sum(track.count for track in self.tracks), self._held()
            )
        else:
            self._hand.param_groups[0]["params"] = list(seen.leaves.values())
            self.step_begins(self._hand)

    def step_begins(self, optimizer: Optimizer) -> None:
        """Optimizer pre-hook."""
        if self._hand is not None and optimizer is not self._hand:
            self._hand = self._stepping = None
            self.tracks = [track for track in self.tracks if track.name != ByHand.__name__]
        track = self._find(optimizer)
        if track is None:
            self.created(optimizer)
            track = self._find(optimizer)
        if track is None and not self._passed.get(optimizer, True):
            self._passed[optimizer] = True
            self.unwatched += 1
        if track is None or (self._stepping is not None and self._overlap(track, self._stepping)):
            return
        self._stepping = track
        if self.window is not None and track.due():
            mine = self._mine(track)
            if mine and mine[-1].batch is not None and track.count == 0 and optimizer is not self._hand:
                track.trial = keep(mine[-1].batch, optimizer)
            track.begin(optimizer, mine, self.roots.parameters(), self.roots.names)

    def step_ended(self, optimizer: Optimizer, *, skipped: bool = False) -> None:
        """Optimizer post-hook; ``skipped`` = a GradScaler met Inf and left the step out."""
        track = self._find(optimizer)
        if track is None:
            self.tally.forget()
        if track is None or not (skipped or track is self._stepping or self.tally.relaxed(optimizer)):
            return
        self._stepping = look = None
        born = self._birth is not None
        if skipped:
            track.skipped.add(track.count)
        elif self.window is not None and track.begun is not None:
            look = self._look(track, optimizer)
        self._count(track, skipped)
        if look is not None:
            self._looked(track, look)
        if self.window is not None or track.due() or born:
            self._arrange()
        if self._limit is not None and track is self.main() and track.count >= self._limit:
            raise Enough

    # ---- what follows from them ----------------------------------------------------------------------------------

    def pace(self) -> float:
        """Seconds a step took, from the first look to the latest."""
        return (self._until - self._since) / max(self._timed, 1)

    def birth(self) -> NonFinite | None:
        """Of a NaN or Inf that no step has followed yet."""
        return self.outputs.birth or self._birth

    def main(self) -> Track | None:
        """The optimizer that stepped first."""
        stepped = [track for track in self.tracks if track.count]
        return stepped[0] if stepped else None

    def stopped(self) -> bool:
        """Were the wanted number of steps made, and the script not waited for?"""
        main = self.main()
        return self._limit is not None and main is not None and main.count >= self._limit

    def steps_of(self, optimizer: Optimizer) -> int:
        """How many steps of this optimizer were seen."""
        track = self._find(optimizer)
        return -1 if track is None else track.count

    def close(self) -> None:
        """Take all module hooks away."""
        self.tally.attend()
        if self.window is not None:
            self.window.close()
            self.window = None
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None

    def fail(self) -> bool:
        """Something of ours broke: the user's training goes on without us. False, as nothing is done."""
        self.broken = traceback.format_exc()
        self.close()
        return False

    def _count(self, track: Track, skipped: bool) -> None:
        if self._birth is not None and not skipped and track.nonfinite is None:
            track.nonfinite = replace(self._birth, step=track.count)
        if not skipped:
            self._birth = None
        self.tally.count(track.losses)
        self._settle()
        self._until, self._timed = _now(), self.turn
        track.clock = self.backwards

    def _settle(self) -> None:
        """Know whose turn it was since the last time."""
        self.turn = sum(track.count for track in self.tracks)
        for track in self.tracks:
            track.settle(self.turn)

    def _arrange(self) -> None:
        """Open the window if the coming step of any optimizer is to be looked at, else close it."""
        wanted = any(track.due() and not track.dormant(self.turn) for track in self.tracks)
        if not wanted:
            self.close()
            self._relax()
        elif self.window is None:
            self.tally.attend()
            self.window = Window(
                self.roots,
                self.outputs,
                self._position,
                self.fail,
                first=not self.tracks[-1].count,
            )
            if self.tally.compiled:
                self._go_eager()
        else:
            self.window.first = not self.tracks[-1].count
            oldest = min(track.clock for track in self.tracks if not track.dormant(self.turn))
            self.window.seen = [seen for seen in self.window.seen if seen.clock > oldest]

    def _relax(self) -> None:
        """Only count until a look is due. A step inside another's is one step, which takes attention; so does none."""
        alive = [track for track in self.tracks if track.reference() is not None]
        for track in alive:
            track.sleep(self._limit)
        apart = [track for track in alive if not any(self._overlap(track, other) for other in alive)]
        self.tally.relax(apart if self._hand is None else ())

    def _forget_passes(self) -> None:
        """Those seen until now were no training."""
        self.tally.clear()
        if self.window is not None:
            self.window.seen.clear()

    def _find_birth(self, loss: Tensor) -> None:
        """Of a loss that is not finite, at a step that is not looked at; the first of each optimizer counts."""
        if all(track.nonfinite is not None for track in self.tracks):
            return
        self.roots.refresh()
        self._birth = find_birth_unwatched(loss, self.roots.names)
        for track in self.tracks:
            track.losses.wake = 0

    def _go_eager(self) -> None:
        self._stance = torch.compiler.set_stance("force_eager")
        if _EAGER not in self.notes:
            self.notes.append(_EAGER)
            self._say(_EAGER)

    def _mine(self, track: Track) -> list[Seen]:
        """Backward passes since this optimizer's last step that reached its parameters (all, if it is alone)."""
        seen = self._passes(track)
        mine = [one for one in seen if not one.leaves.keys().isdisjoint(track.parameters)]
        alone = not any(other is not track and other.count for other in self.tracks)
        return mine or (seen if alone else [])

    def _passes(self, track: Track) -> list[Seen]:
        """Backward passes since this optimizer's last step."""
        return [seen for seen in (self.window.seen if self.window else []) if seen.clock > track.clock]

    def _look(self, track: Track, optimizer: Optimizer) -> Look | None:
        """A probed step is done; None where no backward pass reached what it moves."""
        named, names = self.roots.parameters(), self.roots.names
        mine = (track.begun.mine if track.begun is not None else []) or self._mine(track)
        passes = self._passes(track)
        if not mine:
            track.miss(optimizer, passes, named, names)
            return None
        whole = len(passes) == self.backwards - track.clock and not self.unclear
        if track.count and whole and not any(seen.apart for seen in mine):
            track.carried[track.count] = left_over(mine, track.parameters)
        return track.end(optimizer, mine, named, names)

    def _backward_birth(self, seen: Seen, gradients: Gradients) -> NonFinite | None:
        """Inf under a GradScaler is how it finds its scale."""
        if seen.scale is not None or all(math.isfinite(norm) for norm in seen.norms.values()):
            return None
        names = self.roots.names.parameters
        named = {names.get(key, "a parameter"): gradient for key, gradient in gradients.items()}
        return find_backward_birth(seen.sites, named, 0)

    def _find(self, optimizer: Optimizer) -> Track | None:
        for track in self.tracks:
            if track.reference() is optimizer:
                return track
        return None

    def _held(self) -> set[int]:
        """Parameters of all optimizers that have made a step, those not watched included."""
        unwatched = (p for optimizer in self._passed for group in optimizer.param_groups for p in group["params"])
        return {*map(id, unwatched), *(key for track in self.tracks if track.count for key in track.parameters)}

    def _position(self, tensor: Tensor) -> int | None:
        """Place among the parameters of its optimizer; without any optimizer every leaf may be a weight."""
        for track in self.tracks:
            if id(tensor) in track.parameters:
                return list(track.parameters).index(id(tensor))
        return 0 if self._hand is not None and not self.roots.networks() else None

    @staticmethod
    def _trial_runs(over: list[Track]) -> bool:
        """Such a training was seen once, and was so short that it may have been a trial for the one that begins."""
        return len(over) == 1 and over[0].count < _SHORT

    @staticmethod
    def _overlap(inner: Track, outer: Track) -> bool:
        return inner is not outer and not inner.parameters.keys().isdisjoint(outer.parameters)
