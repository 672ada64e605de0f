"""One optimizer of the user's program: when it is looked at, and what was seen at its steps."""

from __future__ import annotations

import math
import weakref
from collections.abc import Container
from dataclasses import dataclass, replace

from torch import Tensor
from torch.optim import Optimizer

from unvanish.torch.probe.graph import Graph
from unvanish.torch.probe.naming import Names
from unvanish.torch.probe.scopes import Scopes
from unvanish.torch.rehearsal.rehearse import update_ratios
from unvanish.torch.rehearsal.settings import view_optimizer
from unvanish.torch.run.by_hand import ByHand
from unvanish.torch.run.record import Record
from unvanish.torch.run.seen import Seen, gradient_norms
from unvanish.torch.run.trial import Trial
from unvanish.torch.views.observe import Observation
from unvanish.torch.views.parameters import Updates, view_parameters, with_updates
from unvanish.torch.views.strangers import nobodys
from unvanish.types import NonFinite, OptimizerView, Parameter

_TRIES = 5  # steps that showed no backward pass before the next look is put off
_DORMANT = 50  # steps of other optimizers without one of this


@dataclass(frozen=True, slots=True)
class Look:
    """What one probed step told."""

    step: int
    seen: Observation


@dataclass(slots=True)
class Begun:
    """A probed step between the optimizer's pre-hook and its post-hook."""

    updates: Updates
    parameters: tuple[Parameter, ...] | None
    norms: dict[int, float]
    mine: list[Seen]


class Track:
    """The life of one optimizer."""

    def __init__(self, optimizer: Optimizer, clock: int, turn: int) -> None:
        self.reference = weakref.ref(optimizer)
        self.name = type(optimizer).__name__
        self.view: OptimizerView = view_optimizer(optimizer, given=True)
        self.parameters: dict[int, weakref.ref[Tensor]] = {}
        self.shape: tuple[object, ...] = ()
        self.names: dict[str, None] = {}
        self.record = Record()
        self.losses = self.record.losses
        self.looks: list[Look] = []
        self.vain: Look | None = None
        self.sources: set[int] = set()
        self.reached: set[int] = set()
        self.nonfinite: NonFinite | None = None
        self.clock = clock
        self.born = self.turn = turn
        self.begun: Begun | None = None
        self.trial: Trial | None = None
        self._settled = 0
        self._next = 0
        self._tries = 0
        self.learn(optimizer)

    @property
    def count(self) -> int:
        """Its steps so far."""
        return self.record.count

    @property
    def by_hand(self) -> bool:
        """Is there no optimizer?"""
        return self.name == ByHand.__name__

    def stood(self) -> bool:
        """Did none of its weights move at any step looked at?"""
        updates = [p.log_update for look in self.looks for p in look.seen.parameters]
        return all(update in (None, -math.inf) for update in updates)

    @property
    def seen(self) -> list[Look]:
        """Its looks; of one whose steps never met a gradient, the look at what was trained instead."""
        return self.looks or ([] if self.vain is None else [self.vain])

    def settle(self, turn: int) -> None:
        """If it has made steps since this was last asked, the latest of them was at ``turn``."""
        if self.count > self._settled:
            self._settled, self.turn = self.count, turn

    def repeats(self, other: Track) -> bool:
        """The same training once more, after the other was over: the next fold, the next trial."""
        return other.shape == self.shape and other.turn <= self.born and other is not self

    def learn(self, optimizer: Optimizer) -> None:
        """Read the parameters and the learning rates; of a schedule's, the largest that a step was made with counts."""
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters = {id(p): weakref.ref(p) for p in held}
        self.shape = (self.name, *((tuple(p.shape), p.dtype) for p in held))
        now, old = view_optimizer(optimizer, given=True), self.view.learning_rates
        self.record.rates[self.count] = now.learning_rates
        if self.count and len(now.learning_rates) == len(old):
            now = replace(now, learning_rates=tuple(map(max, now.learning_rates, old)))
        self.view = now

    def meets(self, seen: Seen) -> bool:
        """Did this backward pass reach any of its parameters?"""
        return not seen.leaves.keys().isdisjoint(self.parameters)

    def sleep(self, limit: int | None) -> None:
        """Only count until the step before the next look, or before the script is to be stopped."""
        self.losses.wake = (self._next if limit is None else min(self._next, limit)) - 1

    def due(self) -> bool:
        """Is the coming step one to look at?"""
        return self.count >= self._next

    def dormant(self, turn: int) -> bool:
        """Others have made many steps since this one made its last."""
        return turn - self.turn > _DORMANT

    def begin(self, optimizer: Optimizer, mine: list[Seen], named: dict[str, Tensor], names: Names) -> None:
        """A probed step begins: the gradients are as the optimizer will use them, the weights still old."""
        self.learn(optimizer)
        held = {key: p for key, ref in self.parameters.items() if (p := ref()) is not None}
        parameters = self._look_at(optimizer, mine, named, names) if mine else None
        updates = Updates.before_step({str(key): p for key, p in held.items()})
        norms = gradient_norms({key: p.grad for key, p in held.items()}, _fused_scale(optimizer))
        self.begun = Begun(updates, parameters, norms, mine)

    def miss(self, optimizer: Optimizer, passes: list[Seen], named: dict[str, Tensor], names: Names) -> None:
        """The probed step is done, and none of the backward passes since the last one reached its parameters."""
        begun, self.begun = self.begun, None
        self._tries += 1
        self._next = self.count + 1 if self._tries < _TRIES else following(self.count)
        trainable = any(p.requires_grad for ref in self.parameters.values() if (p := ref()) is not None)
        assert begun is not None, "it was looked at when it began"
        empty = not any(begun.norms.values())
        if self.vain is None and passes and trainable and empty:
            self.names.update({name: None for name, p in named.items() if id(p) in self.parameters})
            parameters = self._look_at(optimizer, passes, named, names)
            self.vain = Look(self.count, _observation(passes[-1], parameters))

    def end(self, optimizer: Optimizer, mine: list[Seen], named: dict[str, Tensor], names: Names) -> Look:
        """The probed step is done: keep what was seen."""
        begun, self.begun = self.begun, None
        assert begun is not None, "it was looked at when it began"
        own = {name: p for name, p in named.items() if id(p) in self.parameters}
        self.names.update(dict.fromkeys(own))
        now = {str(key): p for key, ref in self.parameters.items() if (p := ref()) is not None}
        measured = begun.updates.measure(now)
        self._next, self._tries = following(self.count), 0
        closure = begun.parameters is None
        source = mine[0] if closure else mine[-1]
        self.sources.add(source.clock)
        self.reached.update(source.leaves)
        parameters = begun.parameters or self._look_at(optimizer, mine[:1], named, names)
        met = {name: log(source.norms[id(p)]) for name, p in own.items() if id(p) in source.norms}
        if closure:  # it was called again since: take the gradients of the first call
            parameters = tuple(replace(p, log_grad=met.get(p.name, p.log_grad)) for p in parameters)
        elif source.apart:  # they need not come into ``.grad``
            parameters = tuple(replace(p, log_grad=met.get(p.name)) if p.log_grad is None else p for p in parameters)
        parameters = with_updates(
            parameters, {name: measured[str(id(p))] for name, p in own.items() if str(id(p)) in measured}
        )
        after = total({key: norm for key, norm in source.norms.items() if key in self.parameters})
        used = after if closure else total(begun.norms)
        if not closure and not (source.apart and len(mine) > 1):
            self.record.norms[self.count] = after, used
        median, largest = update_ratios(tuple(p for p in parameters if p.name in self.names))
        self.record.facts[self.count] = {
            "log_grad": log(used),
            "update_ratio": median,
            "largest_update_ratio": largest,
            "scale": source.scale,
        }
        seen = _observation(source, parameters)
        self.record.facts[self.count]["term"] = seen.loss.term_level
        if len(self.looks) < 2:  # to be compared: made in each forward pass anew, or another network's?
            seen = replace(seen, strangers=nobodys(source.leaves, source.calls, names, optimizer))
        self.looks.append(Look(self.count, seen))
        return self.looks[-1]

    def _look_at(
        self, optimizer: Optimizer, mine: list[Seen], named: dict[str, Tensor], names: Names
    ) -> tuple[Parameter, ...]:
        """All parameters as they are now; reached = by any loss since this optimizer's last step."""
        leaves = {key: leaf for seen in mine for key, leaf in seen.leaves.items()}
        scopes = Scopes({})
        scopes.calls = [call for seen in mine for call in seen.calls]
        views = view_parameters(named, Graph([], list(leaves.values()), None), scopes, names, optimizer)
        shift = math.log(_fused_scale(optimizer) or 1.0)
        return tuple(replace(p, log_grad=p.log_grad - shift) if p.log_grad and shift else p for p in views)

    def against(self, other: Track) -> bool:
        """Does its loss go through weights that the other moves by a loss of its own?"""
        return not self.reached.isdisjoint(other.parameters) and self.sources.isdisjoint(other.sources)


def _observation(source: Seen, parameters: tuple[Parameter, ...]) -> Observation:
    loss, inputs, cuts = source.before.loss, source.before.inputs, source.before.cuts
    return Observation(source.sites, source.units, parameters, loss, source.times, inputs, cuts, source.batch_size)


def following(step: int) -> int:
    """The next step to look at: 0, 1, 2, 5, 10, 20, 50, 100, ...

    >>> following(0), following(2), following(7), following(100)
    (1, 5, 10, 200)
    """
    decade = 1
    while True:
        for digit in (1, 2, 5):
            if digit * decade > step:
                return digit * decade
        decade *= 10


def left_over(mine: list[Seen], own: Container[int]) -> float:
    """The share of the gradient after the last of these backward passes that stems from before the step before them.

    What any of them found gone or zero was taken away in between: ``zero_grad`` was called.
    """
    kept = [{key for key, norm in seen.kept.items() if norm and key in own} for seen in mine]
    stale = total({key: mine[0].kept[key] for key in set.intersection(*kept)})
    return stale / (total({key: norm for key, norm in mine[-1].norms.items() if key in own}) or 1.0)


def total(norms: dict[int, float]) -> float:
    """Norm over all of them together."""
    return math.hypot(*norms.values())


def log(norm: float) -> float:
    """ln, with -inf for exactly zero and NaN for NaN."""
    return -math.inf if norm == 0 else math.log(norm) if norm > 0 else math.nan


def _fused_scale(optimizer: Optimizer) -> float | None:
    """Fused optimizers under a GradScaler unscale inside their step."""
    scale = getattr(optimizer, "grad_scale", None)
    return None if scale is None else float(scale)
