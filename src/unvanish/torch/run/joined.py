"""Optimizers that stepped on one loss, each for weights of its own, are one training, and reported as one."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from unvanish.torch.rehearsal.rehearse import update_ratios
from unvanish.torch.rehearsal.settings import joined_views
from unvanish.torch.run.record import Record
from unvanish.torch.run.roster import overlap
from unvanish.torch.run.track import Look, Track, log


def joined(tracks: Sequence[Track]) -> list[Track]:
    """These tracks, with one in the place of those that belong together; each with what of its trial is its own."""
    groups: list[list[Track]] = []
    for track in tracks:
        group = next((group for group in groups if all(_together(track, other) for other in group)), None)
        if group is None:
            groups.append([track])
        else:
            group.append(track)
    return [_as_one(group) for group in groups]


def _together(one: Track, other: Track) -> bool:
    """Did they look at the same backward passes?  Of the last step only some may have been made."""
    short, long = sorted((one.sources, other.sources), key=len)
    apart = abs(one.count - other.count)
    return bool(short) and short <= long and len(long) - len(short) <= apart <= 1 and not overlap(one, other)


def _as_one(parts: list[Track]) -> Track:
    one = copy.copy(parts[0])
    trials = [part.trial for part in parts if part.trial is not None]
    one.trial = trials[0].only([part.reference for part in parts]) if trials else None
    if len(parts) == 1:
        return one
    one.view = joined_views([part.view for part in parts])
    one.name = one.view.name
    one.parameters = {key: reference for part in parts for key, reference in part.parameters.items()}
    one.names = {name: None for part in parts for name in part.names}
    one.reached = set().union(*(part.reached for part in parts))
    one.nonfinite = next((part.nonfinite for part in parts if part.nonfinite is not None), None)
    one.looks = _looks(parts)
    one.record = _record(parts, one.looks)
    one.losses = one.record.losses
    return one


def _looks(parts: list[Track]) -> list[Look]:
    """At the steps that all looked at: each parameter as its own optimizer saw it."""
    own = {name: part for part in parts for name in part.names}
    made = []
    for look in parts[0].looks:
        others = {id(part): other for part in parts for other in part.looks if other.step == look.step}
        if len(others) == len(parts):
            views = {key: {p.name: p for p in other.seen.parameters} for key, other in others.items()}
            seen = (views[id(own.get(p.name, parts[0]))].get(p.name, p) for p in look.seen.parameters)
            known = tuple(replace(p, in_optimizer=p.in_optimizer or p.name in own) for p in seen)
            strange = set.intersection(*({id(weight) for weight in other.seen.strangers} for other in others.values()))
            strangers = tuple(weight for weight in look.seen.strangers if id(weight) in strange)
            made.append(Look(look.step, replace(look.seen, parameters=known, strangers=strangers)))
    return made


def _record(parts: list[Track], looks: list[Look]) -> Record:
    """Of all steps; of those looked at, what concerns all parameters."""
    records = [part.record for part in parts]
    one = Record()
    one.losses = max(records, key=lambda record: record.count).losses
    one.skipped = set().union(*(record.skipped for record in records))
    one.rates = _common([record.rates for record in records], lambda rates: sum(rates, ()))
    one.carried = _common([record.carried for record in records], max)
    one.norms = _common([record.norms for record in records], lambda norms: tuple(map(math.hypot, *norms)))
    one.facts = _common([record.facts for record in records], _facts)
    for look in looks:
        names = {name for part in parts for name in part.names}
        median, largest = update_ratios(tuple(p for p in look.seen.parameters if p.name in names))
        one.facts[look.step] |= {"update_ratio": median, "largest_update_ratio": largest}
    return one


def _common(records: list[dict[int, Any]], merge: Any) -> dict[int, Any]:
    """By the steps that are in all of them."""
    steps = sorted(set.intersection(*(set(record) for record in records)))
    return {step: merge([record[step] for record in records]) for step in steps}


def _facts(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """What all saw, with the norm of the whole gradient."""
    whole = math.hypot(*(math.exp(min(fact["log_grad"], 700.0)) for fact in facts))
    return {**facts[0], "log_grad": log(whole)}
