"""What is checked one by one: a piece of the program as a function of the numbers that enter it.

A module's own computation takes its inputs, its parameters and what the modules it calls return, and gives what it
passes on to them and what it returns; the modules it calls are stood in for by what they returned.  So every
derivative is local, however deep the network is, and a fault between two modules is found where it is.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.gradcheck.conventions import Graph, are_log_probabilities, graph_of
from unvanish.torch.gradcheck.leaves import Leaf, Move, as_given
from unvanish.torch.gradcheck.precision import Precision, double_by_default
from unvanish.torch.gradcheck.values import Held, contents, continuous, real

Supply = Callable[[Held], Tensor]
_Buffer = tuple[nn.Module, str, Tensor]
_SEED = 20210501


class ForwardError(Exception):
    """A piece could not be run again in float64; the cause says why."""


@dataclass(frozen=True, slots=True)
class Which:
    """Which of the calls of a module or Function it is."""

    call: int = 1
    calls: int = 1

    def __str__(self) -> str:
        return f" (call {self.call} of {self.calls})" if self.calls > 1 else ""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One piece. ``forward(supply)`` gives its outputs; ``modules`` are those whose buffers it may write."""

    module: str
    kind: str
    which: Which
    forward: Callable[[Supply], Any]
    inputs: dict[Held, str]  # what it is differentiated by
    entering: tuple[tuple[str, Held], ...] = ()  # all that it is given, constants too
    parameters: tuple[tuple[str, nn.Parameter, bool], ...] = ()  # name, parameter, used only if in the graph
    modules: tuple[nn.Module, ...] = ()
    strict: bool = False  # every input must get a gradient: a Function that gives none is wrong
    alone: bool = False  # nothing but it is checked, so its inputs count as parameters do
    plain: bool = False  # it casts nothing, draws nothing and has no convention of its own, see plain.py
    precision: Precision = field(default_factory=Precision)

    def without_nan(self, which: Sequence[Held]) -> Unit:
        """The same with every NaN of these replaced: does one come out still?"""
        return self._given({held: Held(_without_nan(held.data), held.differentiable) for held in which})

    def jittered(self, size: float) -> Unit:
        """The same with all that enters moved by so much of itself, up or down."""
        return self._given({held: Held(_jittered(held.data, size), held.differentiable) for _, held in self.entering})

    def _given(self, other: Mapping[Held, Held]) -> Unit:
        """The same with others in place of some that enter."""
        forward = self.forward
        return replace(
            self,
            inputs={other.get(held, held): name for held, name in self.inputs.items()},
            forward=lambda supply: forward(lambda held: supply(other.get(held, held))),
        )

    def first(self) -> tuple[list[Tensor], list[Leaf], list[Tensor]]:
        """Outputs with their graph, the leaves, and the leaves' tensors in the graph."""
        entries = {held: real(held.data).detach().requires_grad_() for held in self.inputs}
        outputs = self._outputs({held: as_given(held, tensor.clone()) for held, tensor in entries.items()})
        graph = Graph(set()) if self.plain else graph_of(outputs)
        bound = {held for held in entries if graph.log_probabilities and are_log_probabilities(held.data)}
        if bound:
            given = {h: t.log_softmax(-1) if h in bound else as_given(h, t.clone()) for h, t in entries.items()}
            outputs = self._outputs(given)
        taken = [(name, p) for name, p, if_used in self.parameters if not if_used or id(p) in graph.leaves]
        leaves = [
            Leaf(
                name, real(p.detach()).clone(), p, padding=graph.padding.get(id(p)), excused=id(p) in graph.by_frequency
            )
            for name, p in taken
        ]
        tensors: list[Tensor] = [leaf.parameter for leaf in leaves if leaf.parameter is not None]
        for held, tensor in entries.items():
            leaves.append(Leaf(self.inputs[held], real(held.data), held=held, log_probabilities=held in bound))
            tensors.append(tensor)
        return outputs, leaves, tensors

    @contextmanager
    def moving(
        self, leaves: Sequence[Leaf], shifts: Sequence[Tensor | None]
    ) -> Iterator[Callable[[float], list[Tensor]]]:
        """Gives ``at(step)``: the outputs with each leaf moved by ``step * shift``; the parameters are put back."""
        move, places = Move.of(leaves, shifts), self._places()
        try:
            with torch.no_grad() if self.plain else nullcontext():  # else a gradient: the program may ask for it
                yield lambda step: _numbers(self._outputs(move.to(step)), places)
        finally:
            move.back()

    def values(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Their numbers, apart from the parameters that they may be views of."""
        return _numbers(outputs, self._places())

    def _places(self) -> set[int]:
        return {parameter.untyped_storage().data_ptr() for _, parameter, _ in self.parameters}

    def _outputs(self, entries: dict[Held, Tensor]) -> list[Tensor]:
        """``entries`` may be written into by the program."""
        copies, buffers = _Copies(entries), self._buffers()
        try:
            if self.plain and not buffers:
                found = self.forward(copies)
            else:
                with _own(buffers), self.conditions():
                    found = self.forward(copies)
        except Exception as error:  # the user's code, in a precision it may not be written for
            raise ForwardError from error
        return [
            real(y)
            for y in floating(found)
            if (self.alone or not copies.passed_on(y)) and not (y.is_leaf and y.requires_grad)
        ]

    def conditions(self) -> AbstractContextManager[None]:
        """What the program runs in: float64 whatever it asks for, and equal random numbers."""
        if self.plain:
            return nullcontext()
        _seed()
        return self.precision.double()

    def backward_conditions(self) -> AbstractContextManager[None]:
        """The same for its backward pass, within which PyTorch lets nobody watch."""
        if self.plain:
            return nullcontext()
        _seed()
        return double_by_default()

    def _buffers(self) -> list[_Buffer]:
        return [(module, name, b) for module in self.modules for name, b in module._buffers.items() if b is not None]


@contextmanager
def _own(buffers: Sequence[_Buffer]) -> Iterator[None]:
    """Each evaluation has buffers of its own: an earlier graph keeps its."""
    for module, name, buffer in buffers:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


def _numbers(outputs: Sequence[Tensor], places: set[int]) -> list[Tensor]:
    found = (y.detach() for y in outputs)
    return [y.clone() if places and y.untyped_storage().data_ptr() in places else y for y in found]


class _Copies:
    """Hands out each entry as it is, anything else as a copy: the program may write into both."""

    def __init__(self, entries: dict[Held, Tensor]) -> None:
        self._given = dict(entries)
        self._versions = {id(entry): entry._version for entry in entries.values()}

    def __call__(self, held: Held) -> Tensor:
        copy = self._given.get(held)
        if copy is None:
            copy = self._given[held] = held.data.clone()
            self._versions[id(copy)] = copy._version
        return copy

    def passed_on(self, output: Tensor) -> bool:
        """Is it an entry as it came in? Nothing was computed then."""
        return self._versions.get(id(output)) == output._version


def _without_nan(values: Tensor) -> Tensor:
    return values.masked_fill(values.isnan(), 0.5) if continuous(values) else values


def _jittered(values: Tensor, size: float) -> Tensor:
    if not continuous(values) or values.layout is not torch.strided:
        return values
    signs = torch.arange(values.numel(), device=values.device).remainder_(3).sub_(1).view(values.shape)
    return values + values * signs * size


def _seed() -> None:
    torch.default_generator.manual_seed(_SEED)  # torch.manual_seed notes the stack for devices not yet awake
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(_SEED)
    random.seed(_SEED)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(_SEED)


def floating(value: Any) -> list[Tensor]:
    """All floating and complex tensors of an output, each once."""
    return list({id(one): one for one in _tensors(value) if _is_floating(one)}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value if type(value) in (tuple, list) else (contents(value) or {}).values():
            yield from _tensors(part)


def _is_floating(tensor: Tensor) -> bool:
    return continuous(tensor) and tensor.layout is torch.strided and not tensor.is_nested and tensor.numel() > 0
