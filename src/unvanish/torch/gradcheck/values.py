"""Arguments and results as they were at one moment: kept apart from the program, handed out again as often as asked."""

from __future__ import annotations

import copy
import enum
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CONSTANT = (
    type(None), bool, int, float, complex, str, bytes, type, enum.Enum, torch.dtype, torch.device, torch.Size, slice,
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, nn.Module, torch.Generator,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """The numbers of one tensor, in float64 (complex128) if it is floating. ``differentiable``: backward reaches it."""

    data: Tensor
    differentiable: bool


@dataclass(frozen=True, slots=True, eq=False)
class Thing:
    """An object that the program may change (a cache, a list of its own): each use gets its own copy."""

    value: Any


@dataclass(slots=True)
class Keeper:
    """Takes values as they are now; a tensor met twice, unchanged in between, is kept once."""

    _kept: dict[tuple[int, int], Held] = field(default_factory=dict)
    _alive: list[Tensor] = field(default_factory=list)  # an id is used again once its tensor is gone

    def keep(self, value: Any, constant: bool = False) -> Any:
        """A template of ``value`` for ``fill``. ``constant``: nothing is differentiated by its tensors."""
        if isinstance(value, Tensor):
            return self._tensor(value, constant)
        if isinstance(value, _CONSTANT):
            return value
        parts = contents(value)
        if parts is None:
            return _thing(value)
        return rebuilt(value, {key: self.keep(part, constant) for key, part in parts.items()})

    def _tensor(self, tensor: Tensor, constant: bool) -> Held:
        version = -1 if tensor.is_inference() else tensor._version
        held = self._kept.get((id(tensor), version))
        differentiable = not constant and _tracked(tensor)
        if held is None or version == -1 or differentiable != held.differentiable:
            held = Held(_copied(tensor), differentiable)
            self._kept[id(tensor), version] = held
            self._alive.append(tensor)
        return held

    def forget(self) -> None:
        """Let go of the program's own tensors."""
        self._kept.clear()
        self._alive.clear()


def _tracked(tensor: Tensor) -> bool:
    plain = tensor.layout is torch.strided and not tensor.is_nested
    return tensor.requires_grad and continuous(tensor) and plain


def continuous(tensor: Tensor) -> bool:
    """Floating or complex numbers: there are derivatives by them."""
    return tensor.is_floating_point() or tensor.is_complex()


def real(tensor: Tensor) -> Tensor:
    """A view of complex numbers with the real and the imaginary part along a last axis; others as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _copied(tensor: Tensor) -> Tensor:
    detached = tensor.detach()
    if not continuous(tensor):
        return detached.clone()
    return detached.to(torch.complex128 if tensor.is_complex() else torch.float64, copy=True)


def _thing(value: Any) -> Thing:
    try:
        return Thing(copy.deepcopy(value))
    except Exception:  # anything may be an argument; what cannot be copied is used as it is
        return Thing(value)


def contents(value: Any) -> dict[Any, Any] | None:
    """The parts of a container, or None of what is none."""
    if isinstance(value, dict):
        return dict(value.items())
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    return None


def rebuilt(value: Any, parts: dict[Any, Any]) -> Any:
    """A container of the same type with other parts."""
    if type(value) in (tuple, list):
        return type(value)(parts.values())
    if type(value) is dict:
        return parts
    if isinstance(value, tuple):
        named = isinstance(getattr(value, "_fields", None), tuple)
        return tuple.__new__(type(value), parts.values()) if named else type(value)(parts.values())
    other = copy.copy(value)
    if isinstance(value, dict):
        for key, part in parts.items():
            other[key] = part
    elif isinstance(value, list):
        other[:] = parts.values()
    else:
        for name, part in parts.items():
            object.__setattr__(other, name, part)
    return other


def fill(template: Any, supply: Callable[[Held], Tensor]) -> Any:
    """A fresh value from a template, with tensors from ``supply``."""
    if isinstance(template, Held):
        return supply(template)
    if type(template) in (tuple, list):
        return type(template)([fill(part, supply) for part in template])
    if type(template) is dict:
        return {key: fill(part, supply) for key, part in template.items()}
    if isinstance(template, Thing):
        return _thing(template.value).value
    parts = contents(template)
    return template if parts is None else rebuilt(template, {key: fill(part, supply) for key, part in parts.items()})


def held_in(template: Any, name: str = "") -> Iterator[tuple[str, Held]]:
    """All tensors of a template, in order, as ``name[part][part]``."""
    if isinstance(template, Held):
        yield name, template
    elif not isinstance(template, Thing):
        for key, part in (contents(template) or {}).items():
            yield from held_in(part, f"{name}[{key}]")
