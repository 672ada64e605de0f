"""The optimizers of a program: which are watched, which are not, and what each of them holds."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from unvanish.torch.run.seen import Seen
from unvanish.torch.run.track import Track

_MOST = 8
_SHORT = 200  # steps of a trial before the training, such as a search for the learning rate


class Roster:
    """All optimizers met, those that are watched with a track of their own."""

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self.unwatched = 0  # optimizers that made a step and have no track
        self.turn = 0  # steps of all
        self._passed: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()  # has it made a step?

    def find(self, optimizer: Optimizer) -> Track | None:
        """Its track."""
        for track in self.tracks:
            if track.reference() is optimizer:
                return track
        return None

    def knows(self, optimizer: Optimizer) -> bool:
        """Was it met before?"""
        return self.find(optimizer) is not None or optimizer in self._passed

    def admit(self, optimizer: Optimizer, backwards: int) -> bool:
        """Give a new optimizer a track; not one that repeats an ended one, nor one too many."""
        self.settle()
        track = Track(optimizer, backwards, self.turn)
        over = [old for old in self.tracks if old.reference() is None and old.shape == track.shape]
        if (over and not _trial_runs(over)) or len(self.tracks) >= _MOST:
            self._passed[optimizer] = False
            return False
        self.tracks.append(track)
        return True

    def pass_by(self, optimizer: Optimizer) -> None:
        """One without a track makes a step."""
        if not self._passed.get(optimizer, True):
            self._passed[optimizer] = True
            self.unwatched += 1

    def settle(self) -> None:
        """Know whose turn it was since the last time."""
        self.turn = sum(track.count for track in self.tracks)
        for track in self.tracks:
            track.settle(self.turn)

    def main(self) -> Track | None:
        """The optimizer that stepped first."""
        stepped = [track for track in self.tracks if track.count]
        return stepped[0] if stepped else None

    def steps_of(self, optimizer: Optimizer) -> int:
        """How many steps of this optimizer were seen."""
        track = self.find(optimizer)
        return -1 if track is None else track.count

    def held(self) -> set[int]:
        """Parameters of all optimizers that have made a step, those not watched included."""
        unwatched = (p for optimizer in self._passed for group in optimizer.param_groups for p in group["params"])
        return {*map(id, unwatched), *(key for track in self.tracks if track.count for key in track.parameters)}

    def position(self, tensor: Tensor) -> int | None:
        """Place among the parameters of its optimizer."""
        for track in self.tracks:
            if id(tensor) in track.parameters:
                return list(track.parameters).index(id(tensor))
        return None

    def passes_of(self, track: Track, passes: list[Seen]) -> list[Seen]:
        """Of these backward passes those that reached its parameters (all, if it is alone)."""
        mine = [one for one in passes if track.meets(one)]
        alone = not any(other is not track and other.count for other in self.tracks)
        return mine or (passes if alone else [])

    def partners(self, track: Track, seen: Seen) -> list[weakref.ref[Optimizer]]:
        """Itself and those that may step on the same backward pass; none where one of them has stepped before."""
        met = [one for one in self.tracks if one is track or (one.meets(seen) and not overlap(one, track))]
        return [] if any(one.count for one in met) else [one.reference for one in met if one.reference() is not None]

    def apart(self, tracks: Sequence[Track]) -> list[Track]:
        """Those of the tracks that share no parameter with another of them."""
        return [track for track in tracks if not any(overlap(track, other) for other in tracks)]


def overlap(inner: Track, outer: Track) -> bool:
    """Do two different optimizers hold a parameter in common?"""
    return inner is not outer and not inner.parameters.keys().isdisjoint(outer.parameters)


def _trial_runs(over: list[Track]) -> bool:
    """Such a training was seen once, and was so short that it may have been a trial for the one that begins."""
    return len(over) == 1 and over[0].count < _SHORT
