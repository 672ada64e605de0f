"""Where the graph ends although trainable parameters lie behind: detach, no_grad, numpy, argmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import Tensor

from unvanish.torch.probe.graph import Graph
from unvanish.torch.probe.scopes import Call, Scopes
from unvanish.types import Cut, Parameter


def find_cuts(scopes: Scopes, graph: Graph | None) -> tuple[Cut, ...]:
    """Name the last module before the cut and the first after it.

    A module that ran, has trainable parameters and left none of them in the loss's graph is unused (a spare head)
    unless a later module inside the graph was fed with data that needs no gradient: then the path was cut there.
    """
    reached = set() if graph is None else set(graph.leaves)
    leaves = [call for call in scopes.calls if call.end is not None and call.trainable]
    lost = [call for call in leaves if not any(id(p) in reached for p in _parameters(call))]
    if not lost:
        return ()
    if not reached:
        return (_at_loss(lost),)
    cuts = []
    for after in leaves:
        before = [call for call in lost if call.start <= after.start and call is not after]
        if before and after not in lost and _fed_without_gradient(after) and not _shared_input(before, after):
            cuts.append(_cut(before, after))
            lost = [call for call in lost if call not in before]
    return tuple(cuts)


def _parameters(call: Call) -> list[Tensor]:
    return [p for p in call.module._parameters.values() if p is not None and p.requires_grad]


def _fed_without_gradient(call: Call) -> bool:
    return bool(call.inputs) and not any(needs for _, needs in call.inputs)


def _shared_input(before: list[Call], after: Call) -> bool:
    """Is ``after`` fed with what the lost modules were fed with, not with what they made of it?"""
    given = {storage for call in before for storage, _ in call.inputs}
    return all(storage in given for storage, _ in after.inputs if storage)


def suspects(cuts: tuple[Cut, ...], parameters: Iterable[Parameter]) -> tuple[Cut, ...]:
    """What looks cut off, and weights out of the graph though the optimizer holds them and they were used.

    A module that also gets other data hides the cut before it.  A reentrant checkpoint hides its part of the graph, and
    fills the gradients all the same.
    """
    if any(cut.where == "loss" for cut in cuts):
        return cuts
    parameters = tuple(parameters)
    fed = {p.name.rpartition(".")[0] for p in parameters if not p.reached and p.log_grad is not None}
    cuts = tuple(cut for cut in cuts if not fed.issuperset(cut.behind))
    known = {name for cut in cuts for name in cut.behind}
    lost = [p for p in parameters if p.used and p.requires_grad and p.in_optimizer and not p.reached]
    lost = [p for p in lost if p.log_grad is None]
    modules = dict.fromkeys(p.name.rpartition(".")[0] for p in lost)
    hidden = tuple(name for name in modules if name not in known)
    if not hidden:
        return cuts
    return (*cuts, Cut(hidden[-1], "cut", hidden, "what it puts out reaches the loss without its history"))


def confirmed(cuts: tuple[Cut, ...], loss_of: Callable[[Cut | None], float]) -> tuple[Cut, ...]:
    """The cuts before something on which the loss does depend: moved at random, it changes the loss.

    Args:
        cuts: what looks cut off, in space or in time.
        loss_of: the loss of a fresh copy in which what lies behind this cut was moved; None: nothing.
    """
    if not cuts or any(cut.where == "loss" for cut in cuts):
        return cuts
    plain = loss_of(None)
    return tuple(cut for cut in cuts if not math.isclose(loss_of(cut), plain, rel_tol=1e-5, abs_tol=1e-30))


def _at_loss(lost: list[Call]) -> Cut:
    blocked = all(not call.grad_enabled for call in lost)
    op = "no_grad" if blocked else "detach"
    return Cut("loss", op, _names(lost), "the loss does not depend on any trainable parameter")


def _cut(before: list[Call], after: Call) -> Cut:
    last = before[-1]
    if not last.grad_enabled:
        return Cut(last.name, "no_grad", _names(before), f"{last.name} ran with gradients switched off")
    made = {storage for call in before for storage, needs in call.outputs if needs and storage}
    shared = any(storage in made for storage, _ in after.inputs)
    op = "detach" if shared else "cut"
    how = "its output was detached" if shared else "a new tensor without history was made from its output"
    return Cut(last.name, op, _names(before), f"{how} before {after.name}")


def _names(calls: list[Call]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(call.name for call in calls))
