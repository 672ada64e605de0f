"""What happens in the user's program, event by event: backward passes and optimizer steps of any number of networks.

Between two looks these events are only counted, by ``Tally``, and no module is hooked.
"""

from __future__ import annotations

import math
import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from unvanish.torch.run.by_hand import ByHand
from unvanish.torch.run.derivatives import Derivatives
from unvanish.torch.run.eager import Eager
from unvanish.torch.run.losses import value_of
from unvanish.torch.run.newborn import Newborn
from unvanish.torch.run.orphans import Orphans
from unvanish.torch.run.outputs import Outputs
from unvanish.torch.run.roots import Roots
from unvanish.torch.run.roster import Roster, overlap
from unvanish.torch.run.seen import Gradients, Pending, Seen
from unvanish.torch.run.tally import Tally
from unvanish.torch.run.track import Look, Track, left_over
from unvanish.torch.run.trial import keep
from unvanish.torch.run.window import Window
from unvanish.types import NonFinite

_now = time.monotonic
_pid, _thread, _is_compiling = os.getpid, threading.get_ident, torch.compiler.is_compiling


class Enough(BaseException):
    """The wanted number of steps is done: leaves the script through everything but a bare ``except``."""


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
        self.roster = Roster()
        self.window: Window | None = None
        self.backwards = 0
        self.unclear = 0  # backward passes of no single number
        self.inside = 0  # steps made while a backward pass went on
        self.broken: str | None = None
        self._looked, self._limit = looked, limit
        self.tally = Tally()
        self._stepping: Track | None = None
        self._since = self._until = _now()
        self._timed = 0
        self._newborn = Newborn()
        self.outputs = Outputs()
        self.orphans = Orphans()
        self._eager = Eager(say)
        self._hand: ByHand | None = None
        self.derivatives = Derivatives()
        self.strangers = 0  # backward passes and steps of other threads
        self._passing = False
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
        if self.roster.knows(optimizer) or not self.roster.admit(optimizer, self.backwards):
            return
        self._since = _now() if not self.roster.turn else self._since
        self._arrange()

    def compiled(self) -> None:
        """``torch.compile`` was called."""
        self.tally.compiled = True
        if self.window is not None:
            self._eager.begin()

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
        if not self.backwards and not self.roster.tracks:
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
        self._passing = self.window is not None and not by_grad
        if self.window is not None:
            return self.window.begin(loss, None if scaler is None else scaler.get_scale(), self.backwards)
        if self._hand is not None:
            self.step_begins(self._hand)
        if isinstance(value, float) and not math.isfinite(value):
            self._newborn.at_rest(loss, self.roots, self.roster.tracks)
        return None

    def backward_ended(self, pending: Pending, gradients: Gradients | None = None) -> None:
        """It is done; ``pending`` is what ``backward_begins`` returned, ``gradients`` what ``grad`` did."""
        self._passing = False
        if self.window is None:
            return
        pending.seen.apart = gradients is not None
        if gradients is None:
            gradients = {key: leaf.grad for key, leaf in pending.seen.leaves.items()}
        seen = self.window.end(pending, gradients)
        self._newborn.after(seen, gradients, self.roots.names)
        if self._hand is None:
            steps = sum(track.count for track in self.roster.tracks)
            self.orphans.hear(seen, self.roots.names.parameters, steps, self.roster.held())
        else:
            self._hand.param_groups[0]["params"] = list(seen.leaves.values())
            self.step_begins(self._hand)

    def step_begins(self, optimizer: Optimizer) -> None:
        """Optimizer pre-hook."""
        self.inside += self._passing and optimizer is not self._hand
        if self._hand is not None and optimizer is not self._hand:
            self._hand = self._stepping = None
            self.roster.tracks = [track for track in self.roster.tracks if not track.by_hand]
        track = self.roster.find(optimizer)
        if track is None:
            self.created(optimizer)
            track = self.roster.find(optimizer)
        if track is None:
            self.roster.pass_by(optimizer)
            return
        if self._stepping is not None and overlap(track, self._stepping):
            return
        self._stepping = track
        if self.window is not None and track.due():
            mine = self.roster.passes_of(track, self._passes(track))
            if mine and track.count == 0 and optimizer is not self._hand:
                track.trial = keep(mine[-1], self.roster.partners(track, mine[-1]))
            track.begin(optimizer, mine, self.roots.parameters(), self.roots.names)

    def step_ended(self, optimizer: Optimizer, *, skipped: bool = False) -> None:
        """Optimizer post-hook; ``skipped`` = a GradScaler met Inf and left the step out."""
        track = self.roster.find(optimizer)
        if track is None:
            self.tally.forget()
        if track is None or not (skipped or track is self._stepping or self.tally.relaxed(optimizer)):
            return
        self._stepping = look = None
        born = self._newborn.found is not None
        if skipped:
            track.record.skipped.add(track.count)
        elif self.window is not None and track.begun is not None:
            look = self._look(track, optimizer)
        self._count(track, skipped)
        if look is not None:
            self._looked(track, look)
        if self.window is not None or track.due() or born:
            self._arrange()
        if self._limit is not None and track is self.roster.main() and track.count >= self._limit:
            raise Enough

    # ---- what follows from them ----------------------------------------------------------------------------------

    @property
    def notes(self) -> list[str]:
        """What the report should say of how it was watched."""
        return self._eager.notes

    def pace(self) -> float:
        """Seconds a step took, from the first look to the latest."""
        return (self._until - self._since) / max(self._timed, 1)

    def birth(self) -> NonFinite | None:
        """Of a NaN or Inf that no step has followed yet."""
        return self.outputs.birth or self._newborn.found or self._newborn.left_out

    def stopped(self) -> bool:
        """Were the wanted number of steps made, and the script not waited for?"""
        main = self.roster.main()
        return self._limit is not None and main is not None and main.count >= self._limit

    def close(self) -> None:
        """Take all module hooks away."""
        self.tally.attend()
        if self.window is not None:
            self.window.close()
            self.window = None
        self._eager.end()

    def fail(self) -> bool:
        """Something of ours broke: the user's training goes on without us. False, as nothing is done."""
        self.broken = traceback.format_exc()
        self.close()
        return False

    def _count(self, track: Track, skipped: bool) -> None:
        self._newborn.followed(track, skipped=skipped)
        self.tally.count(track.losses)
        self.roster.settle()
        self._until, self._timed = _now(), self.roster.turn
        track.clock = self.backwards

    def _arrange(self) -> None:
        """Open the window if the coming step of any optimizer is to be looked at, else close it."""
        tracks, turn = self.roster.tracks, self.roster.turn
        wanted = any(track.due() and not track.dormant(turn) for track in tracks)
        if not wanted:
            self.close()
            self._relax()
        elif self.window is None:
            self.tally.attend()
            first = not tracks[-1].count
            self.window = Window(self.roots, self.outputs, self._position, self.fail, first=first)
            if self.tally.compiled:
                self._eager.begin()
        else:
            self.window.first = not tracks[-1].count
            oldest = min(track.clock for track in tracks if not track.dormant(turn))
            self.window.seen = [seen for seen in self.window.seen if seen.clock > oldest]

    def _relax(self) -> None:
        """Only count until a look is due. A step inside another's is one step, which takes attention; so does none."""
        alive = [track for track in self.roster.tracks if track.reference() is not None]
        for track in alive:
            track.sleep(self._limit)
        self.tally.relax(self.roster.apart(alive) if self._hand is None else ())

    def _forget_passes(self) -> None:
        """Those seen until now were no training."""
        self.tally.clear()
        if self.window is not None:
            self.window.seen.clear()

    def _passes(self, track: Track) -> list[Seen]:
        """Backward passes since this optimizer's last step."""
        return [seen for seen in (self.window.seen if self.window else []) if seen.clock > track.clock]

    def _look(self, track: Track, optimizer: Optimizer) -> Look | None:
        """A probed step is done; None where no backward pass reached what it moves."""
        named, names = self.roots.parameters(), self.roots.names
        passes = self._passes(track)
        mine = (track.begun.mine if track.begun is not None else []) or self.roster.passes_of(track, passes)
        if not mine:
            track.miss(optimizer, passes, named, names)
            return None
        whole = len(passes) == self.backwards - track.clock and not self.unclear
        if track.count and whole and not any(seen.apart for seen in mine):
            track.record.carried[track.count] = left_over(mine, track.parameters)
        return track.end(optimizer, mine, named, names)

    def _position(self, tensor: Tensor) -> int | None:
        """Place among the parameters of its optimizer; without any optimizer every leaf may be a weight."""
        place = self.roster.position(tensor)
        return 0 if place is None and self._hand is not None and not self.roots.networks() else place
