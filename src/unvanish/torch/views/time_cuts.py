"""Where the state that one call of a module hands to the next is cut off from its history, as by .detach()."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from itertools import pairwise

from unvanish.torch.probe.graph import Graph
from unvanish.torch.probe.scopes import Call, Scopes
from unvanish.types import Cut

_LOOP = 4  # calls of one module that make a loop over time


def find_time_cuts(scopes: Scopes, graph: Graph | None) -> tuple[Cut, ...]:
    """Modules called again and again with gradients on, of which only the last calls are in the loss's graph."""
    if graph is None:
        return ()
    calls: dict[int, list[Call]] = defaultdict(list)
    for call in scopes.calls:
        if call.trainable and call.grad_enabled and call.end is not None:
            calls[id(call.module)].append(call)
    loops = [repeated for repeated in calls.values() if len(repeated) >= _LOOP]
    numbers = sorted(vertex.number for vertex in graph.vertices) if loops else []
    return tuple(cut for repeated in loops if (cut := _cut(repeated, numbers)) is not None)


def _cut(calls: list[Call], numbers: list[int]) -> Cut | None:
    reached = [_within(call, numbers) for call in calls]
    lost = reached.index(True) if True in reached else 0
    if lost < _LOOP - 1 or not all(reached[lost:]):
        return None
    name, count = calls[0].name, len(calls)
    detail = f"only the last {count - lost} of {count} calls of {name or 'the model'} in the loss's graph"
    handed_on = all(_handed_on(one, other) for one, other in pairwise(calls[: lost + 1]))
    return Cut(name, "detach" if handed_on else "cut", (name,), detail, lost)


def _handed_on(call: Call, following: Call) -> bool:
    """Is the next call given what this one put out, in the same memory, without its history?"""
    made = {storage for storage, needs in call.outputs if needs and storage}
    return any(storage in made and not needs for storage, needs in following.inputs)


def _within(call: Call, numbers: list[int]) -> bool:
    first = bisect_left(numbers, call.start)
    return first < len(numbers) and numbers[first] < (call.end or 0)
