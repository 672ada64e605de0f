"""Functions that follow a deep copy: what their closures and globals hold is replaced by its copy.

``copy.deepcopy`` hands functions on as they are, so an objective that closes over the discriminator, the model itself
or a list of its own would train, or write into, the user's objects.  Here such a function is rebuilt over copies made
with the same memo, so that everything that referred to one another still does.
"""

from __future__ import annotations

import copy
import functools
import inspect
import random
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_Memo = dict[int, Any]
_MOST_ITEMS = 1000
_CONTAINERS = (list, dict, set, tuple)


def portable(value: Any, memo: _Memo) -> Any:
    """A copy of a callable, or of anything else, that refers to copies; stateless functions come back as they are."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, types.FunctionType):
        return _function(value, memo)
    if isinstance(value, types.MethodType):
        return types.MethodType(portable(value.__func__, memo), portable(value.__self__, memo))
    if isinstance(value, functools.partial):
        keywords = {key: _moved(part, memo) for key, part in value.keywords.items()}
        return functools.partial(portable(value.func, memo), *(_moved(part, memo) for part in value.args), **keywords)
    if type(value) in _CONTAINERS:
        return _container(value, memo)
    if _holds_network(value):
        return _holder(value, memo)
    return copy.deepcopy(value, memo)


def follow(original: nn.Module, memo: _Memo) -> None:
    """Make hooks, and functions set on modules or weights, of a network already copied refer to the copies too.

    ``copy.deepcopy`` keeps a module's hooks as they are and drops those of its weights.
    """
    for module in original.modules():
        copied = memo.get(id(module))
        for name, value in vars(module).items() if copied is not None else ():
            if isinstance(value, dict):
                if value and name.endswith("_hooks"):
                    vars(copied)[name].update({key: portable(hook, memo) for key, hook in value.items()})
            elif isinstance(value, types.FunctionType):
                vars(copied)[name] = portable(value, memo)
    for parameter in original.parameters():
        copied = memo.get(id(parameter))
        if isinstance(copied, torch.Tensor) and copied.requires_grad:
            for hook in (parameter._backward_hooks or {}).values():
                copied.register_hook(portable(hook, memo))
            for hook in (parameter._post_accumulate_grad_hooks or {}).values():
                copied.register_post_accumulate_grad_hook(portable(hook, memo))


def _function(function: types.FunctionType, memo: _Memo) -> types.FunctionType:
    if not _moves(function, set()):
        return function
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    globals_ = dict(function.__globals__)
    rebuilt = types.FunctionType(function.__code__, globals_, function.__name__, None, cells or None)
    rebuilt.__kwdefaults__ = function.__kwdefaults__
    rebuilt.__dict__.update(vars(function))
    _remember(function, rebuilt, memo)
    rebuilt.__defaults__ = tuple(_moved(value, memo) for value in function.__defaults__ or ()) or None
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        if _filled(old):
            cell.cell_contents = _moved(old.cell_contents, memo)
    globals_.update({name: _moved(value, memo) for name, value in _globals(function).items()})
    return rebuilt


def _container(value: Any, memo: _Memo) -> Any:
    copied: Any = type(value)()
    if not isinstance(value, tuple):
        _remember(value, copied, memo)
    if isinstance(value, dict):
        copied.update({_moved(key, memo): _moved(part, memo) for key, part in value.items()})
    elif isinstance(value, list):
        copied.extend(_moved(part, memo) for part in value)
    else:
        copied = type(value)(_moved(part, memo) for part in value)
    return copied


def _holder(value: Any, memo: _Memo) -> Any:
    """A trainer or an agent: its networks and optimizers are copied, its data (a replay buffer) is shared."""
    copied = copy.copy(value)
    _remember(value, copied, memo)
    for name, part in vars(value).items():
        vars(copied)[name] = _moved(part, memo)
    return copied


def _remember(value: Any, copied: Any, memo: _Memo) -> None:
    memo[id(value)] = copied
    memo.setdefault(id(memo), []).append(value)  # kept alive, as deepcopy does: ids are used again


def _moved(value: Any, memo: _Memo) -> Any:
    return portable(value, memo) if _moves(value, set()) else value


def _moves(value: Any, seen: set[int]) -> bool:
    """Must ``value``, which a user's function refers to, be copied with it?"""
    if isinstance(value, types.FunctionType):
        if id(value) in seen:
            return False
        seen.add(id(value))
        return any(_moves(part, seen) for part in referred(value))
    if isinstance(value, nn.Module | Optimizer | torch.Generator | random.Random):
        return True
    if isinstance(value, torch.Tensor):
        return value.requires_grad and value.is_leaf
    if isinstance(value, types.MethodType):
        return _moves(value.__self__, seen)
    if isinstance(value, functools.partial):
        return any(_moves(part, seen) for part in (value.func, *value.args, *value.keywords.values()))
    if type(value) in _CONTAINERS and len(value) <= _MOST_ITEMS:
        parts = list(value.values()) if isinstance(value, dict) else list(value)
        state = isinstance(value, list | dict | set) and all(isinstance(p, int | float | str | None) for p in parts)
        return state or any(_moves(part, seen) for part in parts)
    return _holds_network(value) or type(value).__module__.startswith("numpy.random")


def _holds_network(value: Any) -> bool:
    """Is it an object with networks, optimizers or schedules among its attributes, or in lists of them?"""
    if isinstance(value, type | types.ModuleType | nn.Module | Optimizer | torch.Tensor):
        return False
    parts = list(getattr(value, "__dict__", {}).values())
    parts += [inner for part in parts if type(part) in (list, tuple) for inner in part[:_MOST_ITEMS]]
    parts += [inner for part in parts if type(part) is dict for inner in list(part.values())[:_MOST_ITEMS]]
    return any(isinstance(part, nn.Module | Optimizer | LRScheduler) for part in parts)


def referred(function: types.FunctionType) -> list[Any]:
    """What a function of the user's may read: its closure, its defaults and globals."""
    held = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    return [*held, *(function.__defaults__ or ()), *_globals(function).values()]


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """Globals that the function may read; functions of other modules than its own are a library's, and stay."""
    known = function.__globals__
    named = {name: known[name] for name in _names(function.__code__) if name in known}
    return {name: value for name, value in named.items() if not _foreign(value, known)}


def _foreign(value: Any, known: dict[str, Any]) -> bool:
    inner = inspect.unwrap(value) if isinstance(value, types.FunctionType) else None
    return isinstance(inner, types.FunctionType) and inner.__globals__ is not known


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names that a function's code, or a function defined in it, may read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
