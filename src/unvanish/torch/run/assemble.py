"""From what was seen of one optimizer to its Flow, in the names the user knows."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

from unvanish.torch.probe.probe import merge_units
from unvanish.torch.rehearsal.session import unobserved
from unvanish.torch.run.roots import Roots
from unvanish.torch.run.track import Track
from unvanish.torch.views.observe import Observation
from unvanish.torch.views.parameters import view_newborn
from unvanish.types import Cut, Flow, NonFinite, OptimizerView, Parameter, Site, Snapshot

_Plain = TypeVar("_Plain")


def assemble(track: Track, others: list[Track], roots: Roots, forgotten: tuple[Cut, ...] = ()) -> Flow:
    """The Flow of one optimizer, which must have been looked at once.

    Args:
        track: what was seen of it.
        others: all that are reported on.
        roots: the networks of the program.
        forgotten: networks that nothing trains, to be told of with this optimizer.
    """
    first, *later = track.seen
    keep = _Mine(track, others, roots)
    sites = _merged(first.seen, later[0].seen if later else None)
    flow = Flow(
        sites=sites,
        parameters=(*keep.parameters(first.seen), *_newborn(track)),
        loss=first.seen.loss,
        times=first.seen.times,
        inputs=first.seen.inputs,
        optimizer=_optimizer(track),
        steps=track.record.steps(),
        snapshots=tuple(Snapshot(look.step, look.seen.sites, keep.parameters(look.seen)) for look in later),
        cuts=(*keep.cuts(first.seen), *forgotten),
        nonfinite=_nonfinite(track),
        unobserved=unobserved(sites, first.seen.times),
        batch_size=first.seen.batch_size,
        others=keep.others(),
        origin="run",
    )
    prefix = roots.common_prefix()
    return flow if prefix is None else renamed(flow, prefix)


class _Mine:
    """What of a look belongs to this optimizer: its own parameters, and those of its networks that nobody trains."""

    def __init__(self, track: Track, others: list[Track], roots: Roots) -> None:
        self._own = set(track.names)
        self._track, self._others = track, [other for other in others if other is not track]
        self._foreign = {name for other in others if other is not track for name in other.names} - self._own
        self._roots = {roots.root_of(name) for name in self._own}
        self._foreign_roots = {roots.root_of(name) for name in self._foreign}
        self._root_of = roots.root_of

    def parameters(self, seen: Observation) -> tuple[Parameter, ...]:
        return tuple(p for p in seen.parameters if self._belongs(p))

    def others(self) -> tuple[str, ...]:
        """Networks on the way to the loss that another optimizer trains by a loss of its own."""
        tracks = [other for other in self._others if self._track.against(other)]
        roots = dict.fromkeys(self._root_of(name) for other in tracks for name in other.names)
        return tuple(root for root in roots if root and root not in self._roots)

    def cuts(self, seen: Observation) -> tuple[Cut, ...]:
        """A path is cut only if no loss between two steps reached what lies behind it, or a state was seen detached."""
        parameters = self.parameters(seen)
        lost = {p.name.rpartition(".")[0] for p in parameters if p.requires_grad and not p.reached}
        own = {p.name.rpartition(".")[0] for p in parameters}
        detached = [cut for cut in seen.cuts if cut.calls and cut.op == "detach" and cut.where in own]
        return (*(cut for cut in seen.cuts if not cut.calls and lost.intersection(cut.behind)), *detached)

    def _belongs(self, parameter: Parameter) -> bool:
        if parameter.name in self._own or not parameter.registered:
            return True
        if parameter.name in self._foreign:
            return False
        root = self._root_of(parameter.name)
        return root in self._roots or (root not in self._foreign_roots and bool(parameter.used))


def _newborn(track: Track) -> tuple[Parameter, ...]:
    """Weights that the first two looks met, and that were others each time."""
    first, second = (*(look.seen.strangers for look in track.seen[:2]), (), ())[:2]
    return view_newborn(first, second)


def _merged(first: Observation, second: Observation | None) -> tuple[Site, ...]:
    """A unit counts as dead only if it is dead in the first two looks, where they saw the same ops."""
    if second is None or [site.op for site in first.sites] != [site.op for site in second.sites]:
        return first.sites
    return merge_units(first.sites, first.units, second.units)


def _optimizer(track: Track) -> OptimizerView:
    """Weights changed by hand have an unknown learning rate, which is not judged."""
    if not track.by_hand:
        return track.view
    return replace(track.view, name="no optimizer", learning_rates=(), given=False)


def _nonfinite(track: Track) -> NonFinite | None:
    if track.nonfinite is None and track.losses.first_bad is not None:
        return NonFinite("loss", "unknown", "forward", track.losses.first_bad, "the loss itself is NaN or Inf")
    return track.nonfinite


def renamed(value: _Plain, prefix: str) -> _Plain:
    """The same plain data with ``prefix`` taken off every name: "model.net.0" is "net.0", "model:relu" is "relu"."""
    if isinstance(value, str):
        return _without(value, prefix)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(renamed(part, prefix) for part in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: renamed(getattr(value, f.name), prefix) for f in fields(value) if f.name not in _NO_PLACES}
        return replace(value, **changed)
    return value


_NO_PLACES = ("op", "kind", "dtype", "schema", "framework", "origin", "lever", "direction", "optimizer")


def _without(name: str, prefix: str) -> str:
    return "" if name == prefix else re.sub(rf"(?<![\w.]){re.escape(prefix)}[.:](?=\w)", "", name)
