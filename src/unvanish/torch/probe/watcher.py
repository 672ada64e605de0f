"""The forward half of a probe: module calls, and the moments of what they and functional activations put out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.probe.graph import Vertex
from unvanish.torch.probe.moments import MomentQueue
from unvanish.torch.probe.naming import Names
from unvanish.torch.probe.recurrent import TimeWatch
from unvanish.torch.probe.saved import readable
from unvanish.torch.probe.scopes import Scopes, tensors_in, wrapped

_saving_elsewhere = torch._C._autograd._top_saved_tensors_default_hooks
_KEEP_OUTPUT = frozenset({nn.Tanh, nn.Sigmoid, nn.ReLU})  # their nodes do, so that it can be read later, many at once
_RNNBase = nn.RNNBase


class Watcher(Scopes):
    """Scopes that also measure what every module puts out, and the time axis of recurrent modules."""

    def __init__(self, names: Names, batch_size: int | None) -> None:
        super().__init__(names.modules)
        self.batch_size = batch_size
        self.moments = MomentQueue(batch_size)
        self.times = TimeWatch(names.modules)
        self.output: Any = None

    def enter(self, module: nn.Module, args: Any) -> Any:
        """Before a call."""
        Scopes.enter(self, module, args)
        if isinstance(module, _RNNBase) and id(module) in self.names:
            return self.times.enter(module, args)
        return None

    def leave(self, module: nn.Module, args: Any, output: Any) -> bool:
        """After a call."""
        if not Scopes.leave(self, module, args, output):
            return False
        if not self._open:
            self.output = output
        if isinstance(module, _RNNBase):
            self.times.leave(module, output)
        if type(output) is not Tensor:
            for tensor in tensors_in(output):
                self._measure(tensor)
        elif wrapped(output):
            return True
        elif type(module) not in _KEEP_OUTPUT or not output.is_floating_point() or _saving_elsewhere(False):
            self._measure(output)
        return True

    def _measure(self, tensor: Tensor) -> None:
        node = tensor.grad_fn
        if node is None:
            return
        number = node._sequence_nr()
        if self.moments.claim(number):
            self.moments.add(number, tensor)

    def claim(self, number: int) -> bool:
        """Is it the caller's turn to measure what this node put out?"""
        return number >= 0 and self.moments.claim(number)

    def observe_saved(self, vertex: Vertex) -> None:
        """Forward value of a functional activation and of what feeds it, which autograd kept for the backward pass."""
        result, argument = _kept(type(vertex.node))
        self._observe(vertex, "_saved_result" if result else "", vertex.number)
        self._observe(vertex, "_saved_self" if argument else "", _producer(vertex))

    def _observe(self, vertex: Vertex, attribute: str, number: int) -> None:
        if attribute and not self.moments.claimed(number) and readable(vertex) and self.claim(number):
            self.moments.add(number, getattr(vertex.node, attribute))


_KEPT: dict[type, tuple[bool, bool]] = {}


def _kept(kind: type) -> tuple[bool, bool]:
    """Does this kind of node keep its output, and its input?"""
    known = _KEPT.get(kind)
    if known is None:
        known = _KEPT[kind] = ("_raw_saved_result" in dir(kind), "_raw_saved_self" in dir(kind))
    return known


def _producer(vertex: Vertex) -> int:
    """Number of the node whose output this one reads; -1 where that is a view or unknown."""
    below = vertex.below[0] if vertex.below else None
    return -1 if below is None or below.hidden else below.number
