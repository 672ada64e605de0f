"""Which module an autograd node belongs to, and what modules put out: every module call of one forward pass.

Autograd numbers its nodes as they are made.  A module call owns the numbers made between its begin and its end, so
a node's module is the innermost call whose interval holds its number: no tracing, and functional ops are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import le
from typing import Any

import torch
from torch import Tensor, nn

_sequence_number = torch._C._autograd._get_sequence_nr
_compiling, _tracing, _grad_enabled = torch.compiler.is_compiling, torch._C._get_tracing_state, torch.is_grad_enabled
wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # inside vmap or grad: it has no numbers of its own

_INNER_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


# What is kept of a tensor that crossed a module's border, never the tensor itself: the address of its storage (0: it
# has none, being sparse, fake or wrapped), and whether it requires gradients.
TensorFacts = tuple[int, bool]
_Packed = int | tuple[int, ...]  # twice the address, and 1 if it requires gradients; of one tensor, or of several


@dataclass(slots=True)
class Call:
    """One call of one module. ``end`` is None while it runs, or where it raised.

    ``given`` and ``made``, what is known of the tensors that went in and came out, are kept only for modules with
    trainable parameters of their own: else ``given`` is None.  ``made`` is None where gradients were switched off.
    """

    name: str
    module: nn.Module
    start: int
    level: int
    end: int | None = None
    parent: bool = False
    given: _Packed | None = None
    made: _Packed | None = ()

    @property
    def grad_enabled(self) -> bool:
        """Were gradients switched on when it began?"""
        return self.made is not None

    @property
    def trainable(self) -> bool:
        """Has the module trainable parameters of its own?"""
        return self.given is not None

    @property
    def inputs(self) -> tuple[TensorFacts, ...]:
        """Facts of each tensor among the arguments."""
        return _unpacked(self.given)

    @property
    def outputs(self) -> tuple[TensorFacts, ...]:
        """Facts of each tensor in what it returned."""
        return _unpacked(self.made)


def read_elsewhere() -> bool:
    """Is what runs now read by a compiler or a tracer, which would take our calls for the program's?"""
    return _compiling() or _tracing() is not None


def _facts(value: Any) -> _Packed:
    """Of each tensor in it."""
    if type(value) is Tensor:
        return _packed(value)
    return tuple(_packed(tensor) for tensor in tensors_in(value))


def _packed(tensor: Tensor) -> int:
    return 2 * _storage(tensor) + tensor.requires_grad


def _unpacked(facts: _Packed | None) -> tuple[TensorFacts, ...]:
    every = (facts,) if isinstance(facts, int) else facts or ()
    return tuple((one // 2, one % 2 == 1) for one in every)


def _storage(tensor: Tensor) -> int:
    try:  # without an offset into it, the storage begins where the tensor does, and need not be made an object of
        return tensor.untyped_storage().data_ptr() if tensor.storage_offset() else tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def tensors_in(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Tensors inside nested tuples, lists, dicts, dataclasses and model outputs, in order; none that has no numbers."""
    if isinstance(value, Tensor):
        if not wrapped(value):
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part, depth + 1)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part, depth + 1)
    elif depth < 4 and hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name), depth + 1)


def clean(name: str) -> str:
    """A module path as the user wrote it, without what DDP, FSDP, compile and checkpointing put in between."""
    if "module" not in name and "_orig_mod" not in name:
        return name
    parts = [part for part in name.split(".") if part not in _INNER_WRAPPERS]
    while parts and parts[0] == "module":  # DataParallel and DDP stand outside of everything
        parts = parts[1:]
    return ".".join(parts)


class Scopes:
    """Records module calls while active."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """``names`` maps id(module) to its path; modules not in it are ignored."""
        self.names = names
        self.calls: list[Call] = []
        self._open: list[Call] = []
        self._number = -1

    @contextmanager
    def recording(self) -> Iterator[Scopes]:
        """Stand before and after every call of a module for the length of the block.

        As global hooks would; but with any of those, PyTorch makes each call in a way that takes as long as a small op.
        """
        call_of: Callable[..., Any] = nn.Module._call_impl
        enter, leave = self.enter, self.leave

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if read_elsewhere():
                return call_of(module, *args, **kwargs)
            changed = enter(module, args)
            output = call_of(module, *(args if changed is None else changed), **kwargs)
            leave(module, args, output)
            return output

        nn.Module._call_impl = call  # type: ignore[method-assign,assignment]
        try:
            yield self
        finally:
            nn.Module._call_impl = call_of  # type: ignore[method-assign]
            self._open.clear()

    def enter(self, module: nn.Module, args: Any) -> Any:
        """Before a call; what it returns, if anything, are the arguments to be given instead."""
        name = self.names.get(id(module))
        if name is None:
            return
        opened = self._open
        if opened:
            opened[-1].parent = True
        call = Call(name, module, self._now(), len(opened))
        if not _grad_enabled():
            call.made = None
        if module._parameters and _has_weights(module):  # most modules have none, and this is asked at every call
            call.given = _facts(args[0] if len(args) == 1 else args)
        opened.append(call)
        self.calls.append(call)

    def leave(self, module: nn.Module, args: Any, output: Any) -> bool:
        """After a call, if it is one that was recorded; modules that raised inside this one stay without an end."""
        opened = self._open
        if not opened or (opened[-1].module is not module and not self._unwind(module)):
            return False
        call = opened.pop()
        call.end = self._now()
        if call.given is not None and call.made is not None:
            call.made = _facts(output)
        return True

    def _now(self) -> int:
        """The number of the next node: one object, however many calls begin and end at it."""
        number = _sequence_number()
        if number != self._number:
            self._number = number
        return self._number

    def _unwind(self, module: nn.Module) -> bool:
        """Forget the calls that raised inside one of this module; False if it is not open."""
        opened = self._open
        if not any(call.module is module for call in opened):
            return False
        while opened[-1].module is not module:
            opened.pop()
        return True

    def innermost(self) -> str:
        """Path of the module that runs now ("" for the whole network); "loss" outside of all."""
        return self._open[-1].name if self._open else "loss"

    def owners(self, numbers: list[int]) -> list[Call | None]:
        """Innermost call that owns each of these node numbers; a negative number belongs to none."""
        calls = [call for call in self.calls if call.end is not None]
        owners: list[Call | None] = [None] * len(numbers)
        stack: list[Call] = []
        ends: list[int] = []
        nearest, waiting = 0, len(calls)
        ordered = all(map(le, numbers, islice(numbers, 1, None)))  # as they are, but for nodes of another thread
        for index in range(len(numbers)) if ordered else sorted(range(len(numbers)), key=numbers.__getitem__):
            number = numbers[index]
            while nearest < waiting and calls[nearest].start <= number:
                stack.append(calls[nearest])
                ends.append(calls[nearest].end or 0)
                nearest += 1
            while stack and ends[-1] <= number:
                stack.pop()
                ends.pop()
            if stack:
                owners[index] = stack[-1]
        return owners


def _has_weights(module: nn.Module) -> bool:
    """Has the module trainable parameters of its own?"""
    for parameter in module._parameters.values():  # noqa: SIM110, a generator costs more than all the rest
        if parameter is not None and parameter.requires_grad:
            return True
    return False
