"""Which module an autograd node belongs to, and what modules put out: module hooks around one forward pass.

Autograd numbers its nodes as they are made.  A module call owns the numbers between its pre-hook and its hook, so
a node's module is the innermost call whose interval holds its number: no tracing, and functional ops are seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils.hooks import RemovableHandle

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass(slots=True)
class Call:
    """One call of one module. ``end`` is None while it runs, or where it raised."""

    name: str
    module: nn.Module
    start: int
    level: int
    number: int
    end: int | None = None
    parent: bool = False
    grad_enabled: bool = True
    inputs: list[TensorFacts] = field(default_factory=list)
    outputs: list[TensorFacts] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What is kept of a tensor that crossed a module's border; never the tensor itself."""

    storage: int
    shape: tuple[int, ...]
    floating: bool
    requires_grad: bool
    node: int | None  # number of the autograd node that made it


def facts(tensor: Tensor) -> TensorFacts:
    """Facts of one tensor; a sparse or wrapped tensor without storage counts as storage 0."""
    strided = tensor.layout == torch.strided and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    grad_fn = tensor.grad_fn
    return TensorFacts(
        storage=tensor.untyped_storage().data_ptr() if strided and tensor.device.type != "meta" else 0,
        shape=tuple(tensor.shape),
        floating=tensor.is_floating_point() or tensor.is_complex(),
        requires_grad=tensor.requires_grad,
        node=None if grad_fn is None else grad_fn._sequence_nr(),
    )


def tensors_in(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Tensors inside nested tuples, lists, dicts, dataclasses and model outputs, in order."""
    if isinstance(value, Tensor):
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
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
        if name == wrapper[:-1]:
            return ""
    return name


class Scopes:
    """Records module calls while active. ``seen`` is told of every tensor a module returns."""

    def __init__(self, names: dict[int, str]) -> None:
        """``names`` maps id(module) to its path; modules not in it are ignored."""
        self.names = names
        self.calls: list[Call] = []
        self._open: list[Call] = []
        self._numbers: dict[str, int] = {}
        self._process = os.getpid()

    @contextmanager
    def recording(self) -> Iterator[Scopes]:
        """Hook every module of the process for the length of the block."""
        handles: list[RemovableHandle] = [
            nn_module.register_module_forward_pre_hook(self.enter),
            nn_module.register_module_forward_hook(self.leave, always_call=True),
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, module: nn.Module, args: Any) -> Any:
        """Global forward pre-hook."""
        name = self.names.get(id(module))
        if name is None or torch.compiler.is_compiling():
            return
        number = self._numbers.get(name, 0)
        self._numbers[name] = number + 1
        if self._open:
            self._open[-1].parent = True
        call = Call(name, module, torch.autograd._get_sequence_nr(), len(self._open), number)
        call.grad_enabled = torch.is_grad_enabled()
        call.inputs = [facts(tensor) for tensor in tensors_in(args)]
        self._open.append(call)
        self.calls.append(call)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Global forward hook; also called when the module raised (then ``output`` is None)."""
        if id(module) not in self.names or not self._open or self._open[-1].module is not module:
            return
        call = self._open.pop()
        call.end = torch.autograd._get_sequence_nr()
        call.outputs = [facts(tensor) for tensor in tensors_in(output)]

    def innermost(self) -> str:
        """Path of the module that runs now; "" outside of all."""
        return self._open[-1].name if self._open else ""

    def owners(self, numbers: list[int]) -> list[Call | None]:
        """Innermost call that owns each of the ascending node numbers."""
        calls = [call for call in self.calls if call.end is not None]
        owners: list[Call | None] = []
        stack: list[Call] = []
        nearest = 0
        for number in numbers:
            while nearest < len(calls) and calls[nearest].start <= number:
                stack.append(calls[nearest])
                nearest += 1
            while stack and not _owns(stack[-1], number):
                stack.pop()
            owners.append(stack[-1] if stack else None)
        return owners


def _owns(call: Call, number: int) -> bool:
    return call.end is not None and call.start <= number < call.end
