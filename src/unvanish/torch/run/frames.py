"""Find out what the user calls a thing: the variables of the frames that are running, by identity."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

_DEEPEST = 60  # frames looked through
_WIDEST = 512  # items of one list or dict looked through
_NO_NAMES = ("self", "cls", "module", "mod", "m", "net_module", "value", "func", "fn")


def find_root(module: nn.Module) -> tuple[str, nn.Module]:
    """The outermost module in reach of the running frames that contains ``module``, and the user's name for it."""
    held = list(_held())
    root, size = module, 0
    for value in {id(value): value for _, value in held if isinstance(value, nn.Module)}.values():
        parts = {id(part) for part in value.modules()}
        if id(module) in parts and len(parts) > size:
            root, size = value, len(parts)
    name = next((name for name, value in held if value is root and name not in _NO_NAMES), type(root).__name__)
    return name, root


def find_owner(parameter: Tensor) -> nn.Module | None:
    """A module in reach of the running frames that has this parameter."""
    modules = (value for _, value in _held() if isinstance(value, nn.Module))
    return next((one for one in modules if any(parameter is own for own in one.parameters())), None)


def find_name(tensor: Tensor) -> str | None:
    """The user's name for a tensor, such as "w1" or "weights.0"; None where no running frame holds it."""
    return next((name for name, value in _held() if value is tensor), None)


def lost_losses() -> list[Tensor]:
    """Single numbers with a graph that are NaN, among all variables in reach."""
    tensors = [value for _, value in _held() if isinstance(value, Tensor) and value.grad_fn is not None]
    return [one for one in tensors if one.numel() == 1 and not one.is_sparse and bool(torch.isnan(one.detach()).all())]


def keywords_of_call() -> dict[str, Any]:
    """Keyword arguments of the module call whose forward pre-hook runs now; {} where that cannot be seen."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "torch.nn.modules.module":
        frame = frame.f_back
    found = {} if frame is None else frame.f_locals.get("kwargs")
    return dict(found) if isinstance(found, dict) else {}


def _held() -> Iterator[tuple[str, Any]]:
    """(name, value) of all variables in reach, innermost frame first, with items of containers and of ``self``."""
    seen: set[int] = set()
    for frame in _user_frames():
        for scope in (frame.f_locals, frame.f_globals):
            if scope is frame.f_globals and (id(scope) in seen or seen.add(id(scope))):  # type: ignore[func-returns-value]
                continue
            for name, value in list(scope.items()):
                yield from _opened(name, value)
        _forget_snapshot(frame)


def _opened(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A variable, what is in it where it is a container, and the attributes of a plain object."""
    if name.startswith("__"):
        return
    yield name, value
    if isinstance(value, list | tuple):
        yield from ((f"{name}.{i}", part) for i, part in enumerate(value[:_WIDEST]))
    elif isinstance(value, dict) and len(value) <= _WIDEST:
        yield from ((f"{name}.{key}", part) for key, part in list(value.items()))
    elif not isinstance(value, nn.Module | Tensor | type) and not inspect.ismodule(value):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict) and len(attributes) <= _WIDEST:
            prefix = "" if name in _NO_NAMES else f"{name}."
            yield from ((prefix + key, part) for key, part in list(attributes.items()))


def _user_frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame is None:
            return
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("torch", "unvanish", "runpy", "typer", "click"):
            yield frame
        frame = frame.f_back


def _forget_snapshot(frame: FrameType) -> None:
    """Before Python 3.13 ``f_locals`` of a function is a copy that lives as long as the frame, tensors and all."""
    if sys.version_info < (3, 13) and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        frame.f_locals.clear()
