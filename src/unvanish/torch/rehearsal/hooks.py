"""Hooks of an optimizer's step on its copy: a schedule, a clipping or an average that the program hangs there.

A hook is carried over only where all that it refers to is a copy too; one that could reach the user's own optimizer or
weights stays behind, and the learning rate, which it may set, is not judged then.
"""

from __future__ import annotations

import contextlib
import functools
import io
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from unvanish.torch.rehearsal.portable import portable, referred
from unvanish.torch.rehearsal.together import parts_of

_Hook = Callable[[Optimizer, Any, Any], Any]
_KINDS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_MOST = 20_000  # objects looked through for what a hook refers to


def carry(optimizer: Optimizer, copied: Optimizer, memo: dict[int, Any]) -> None:
    """Give the copy the hooks of the original's steps, if all of them can be carried over; else none.

    Args:
        optimizer: the original.
        copied: its deep copy.
        memo: of that copy; what the hooks refer to is copied with it.
    """
    hooks = {kind: getattr(optimizer, kind, {}) for kind in _KINDS}
    rates = _Rates(copied, next((one.rates for one in _flat(hooks) if isinstance(one, _Carried)), None))
    own = _own(optimizer)
    made: dict[str, dict[int, _Carried]] = {}
    for kind, held in hooks.items():
        inner = {key: hook.hook if isinstance(hook, _Carried) else hook for key, hook in held.items()}
        made[kind] = {key: _Carried(portable(hook, memo), rates) for key, hook in inner.items()}
    if any(_reaches(one.hook, own) for one in _flat(made)):
        return
    for kind, held in made.items():
        getattr(copied, kind).clear()  # of a wrapper that hangs its own at what it wraps, they are among these
        getattr(copied, kind).update(held)


def hooked(optimizer: Optimizer | None) -> bool:
    """Does anything hang at its steps?"""
    return any(getattr(part, kind, None) for part in parts_of(optimizer) for kind in _KINDS)


def drop(optimizer: Optimizer) -> None:
    """Take the hooks off a copy."""
    for part in parts_of(optimizer):
        for kind in _KINDS:
            getattr(part, kind).clear()


class _Rates:
    """The learning rates as a schedule in a hook knows them, beside those that an experiment multiplied."""

    def __init__(self, optimizer: Optimizer, before: _Rates | None) -> None:
        self.left: list[float] = list(before.left) if before is not None else _rates(optimizer)
        self.factors: list[float] = list(before.factors) if before is not None else [1.0] * len(self.left)

    @contextlib.contextmanager
    def unmoved(self, optimizer: Optimizer) -> Iterator[None]:
        """The hook's own rates in the block; what they were multiplied by since it ran last counts after it too."""
        now = _rates(optimizer)
        if len(now) != len(self.left):
            self.left, self.factors = now, [1.0] * len(now)
        pairs = zip(self.factors, now, self.left, strict=True)
        self.factors = [factor * (rate / left if left else 1.0) for factor, rate, left in pairs]
        _multiply(optimizer, [1 / factor if factor else 1.0 for factor in self.factors])
        yield
        _multiply(optimizer, self.factors)
        self.left = _rates(optimizer)


class _Carried:
    """A hook of the copy; what it prints or warns of, the program says itself when it runs."""

    def __init__(self, hook: _Hook, rates: _Rates) -> None:
        self.hook, self.rates = hook, rates

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), self.rates.unmoved(optimizer):
            warnings.simplefilter("ignore")
            return self.hook(optimizer, args, kwargs)


def _flat(hooks: dict[str, Any]) -> list[Any]:
    return [hook for held in hooks.values() for hook in held.values()]


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [group for group in optimizer.param_groups if group.get("lr") is not None]


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in _groups(optimizer)]


def _multiply(optimizer: Optimizer, factors: list[float]) -> None:
    for group, factor in zip(_groups(optimizer), factors, strict=False):
        if factor != 1:
            group["lr"] = group["lr"] * factor


def _own(optimizer: Optimizer) -> set[int]:
    """What of the user's a hook must not reach: the optimizer, its groups and its weights."""
    groups = optimizer.param_groups
    return {id(optimizer), id(groups), *map(id, groups), *(id(p) for group in groups for p in group["params"])}


def _reaches(hook: Any, forbidden: set[int]) -> bool:
    """Does it refer to one of these objects, however far? True also where there is too much to look through."""
    waiting, seen = [hook], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in forbidden or len(seen) > _MOST:
            return True
        if id(value) in seen:
            continue
        seen.add(id(value))
        waiting += _parts(value)
    return False


def _parts(value: Any) -> list[Any]:
    """What an object refers to; classes, modules of Python and plain values to nothing."""
    if isinstance(value, types.FunctionType):
        return referred(value)
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.BuiltinMethodType):
        return [value.__self__]
    if isinstance(value, weakref.ReferenceType):
        return [value()]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, type | types.ModuleType | torch.Tensor):
        return []
    slots = (name for kind in type(value).__mro__ for name in _named(vars(kind).get("__slots__", ())))
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]


def _named(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
