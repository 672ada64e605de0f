"""Backward passes whose gradients nobody uses: no optimizer that makes a step holds any of the weights they reach."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from unvanish.torch.probe.norms import norms
from unvanish.torch.run.seen import Seen
from unvanish.torch.run.track import Track
from unvanish.types import Cut

_LOOKS = 3  # passes seen, at as many steps of the others
_STEPS = 10  # of the others meanwhile: less may be an optimizer that waits for its turn
_MOST = 16  # kinds of passes kept


@dataclass(slots=True)
class _Passes:
    """Passes that reached the same weights."""

    places: dict[int, str]
    weights: list[weakref.ref[Tensor]]
    norms: list[float]
    moved: bool = False
    turns: list[int] = field(default_factory=list)


class Orphans:
    """Candidates among the passes that a window saw."""

    def __init__(self) -> None:
        self._kinds: dict[frozenset[int], _Passes] = {}

    def hear(self, seen: Seen, names: Mapping[int, str], turn: int, held: Iterable[int]) -> None:
        """A backward pass is done.

        Args:
            seen: what it reached.
            names: of the parameters.
            turn: steps of all optimizers so far.
            held: the parameters of all optimizers that have made a step.
        """
        if seen.by_data or not names.keys() & seen.leaves.keys() or not seen.leaves.keys().isdisjoint(held):
            return
        if not any(call.module.training for call in seen.calls):
            return  # a network in eval mode is asked for slopes, not trained
        weights, key = list(seen.leaves.values()), frozenset(seen.leaves)
        if (known := self._kinds.get(key)) is None:
            if len(self._kinds) < _MOST:
                places = {one: name for one, name in names.items() if one in key}
                self._kinds[key] = _Passes(places, [weakref.ref(p) for p in weights], norms(weights), turns=[turn])
            return
        same = [ref() is p for ref, p in zip(known.weights, weights, strict=True)]
        known.moved |= not all(same) or norms(weights) != known.norms
        known.turns = list(dict.fromkeys([*known.turns, turn]))

    def cuts(self, tracks: Sequence[Track]) -> tuple[Cut, ...]:
        """One for each network that is not trained though its loss is differentiated, when the program has ended."""
        held = {key for track in tracks if track.count for key in track.parameters}
        lost = [passes for key, passes in self._kinds.items() if held.isdisjoint(key) and self._certain(passes)]
        return tuple(_cut(passes, tracks) for passes in lost)

    @staticmethod
    def _certain(passes: _Passes) -> bool:
        turns = passes.turns
        return not passes.moved and len(turns) >= _LOOKS and turns[-1] - turns[0] >= _STEPS


def _cut(passes: _Passes, tracks: Sequence[Track]) -> Cut:
    idle = [track.name for track in tracks if not track.count and not track.parameters.keys().isdisjoint(passes.places)]
    detail = f"{idle[0]}, which holds them, never makes a step" if idle else "no optimizer of the program holds them"
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in passes.places.values()))
    return Cut(modules[0], "optimizer", modules, detail)
