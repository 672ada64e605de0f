"""The calls of PyTorch that made a loss, kept to be made again with other weights.

A loss of the program's own making cannot be built again from its name, as cross-entropy can.  What the program called
from its first network to the loss can: a list of functions and of where their arguments came from, with the derivatives
that belong to them (a Wengert list; Griewank and Walther 2008, Evaluating Derivatives, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.probe.scopes import tensors_in


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a tensor among all that were met."""

    index: int


@dataclass(frozen=True, slots=True)
class Called:
    """One call: its arguments with slots for tensors, the slots of what it returned, and the modes that were on."""

    func: Callable[..., Any]
    args: Any
    keywords: Any
    returned: tuple[int, ...]
    grad: bool
    autocast: tuple[str, torch.dtype] | None

    def again(self, filled: Callable[[Any], Any]) -> Any:
        """Make it once more, with ``filled`` giving the argument for what was noted down."""
        half = nullcontext() if self.autocast is None else torch.autocast(*self.autocast)
        with torch.set_grad_enabled(self.grad), half:
            return self.func(*mapped(self.args, filled), **mapped(self.keywords, filled))


@dataclass(frozen=True, slots=True)
class Tape:
    """All calls up to a loss. ``leaves`` are the program's own tensors that take a gradient, ``data`` copies of others.

    ``random``: the state of the random stream before the calls of these indices.
    """

    calls: tuple[Called, ...]
    leaves: dict[int, Tensor]
    data: dict[int, Tensor]
    loss: int
    random: dict[int, Tensor]

    @property
    def size(self) -> int:
        """How many numbers the program trains, at most."""
        return sum(leaf.numel() for leaf in self.leaves.values())

    @property
    def derives_inputs(self) -> bool:
        """Is what ``torch.autograd.grad`` returns given to a layer, as an adversarial step is?"""
        weights = {index for index, leaf in self.leaves.items() if isinstance(leaf, nn.Parameter) and leaf.ndim > 1}
        made: set[int] = set()
        for call in self.calls:
            taken = set(slots_in((call.args, call.keywords)))
            if call.func.__name__ == "grad" and call.func.__module__ == torch.autograd.__name__:
                made.update(call.returned)
            elif taken & made:
                if taken & weights:
                    return True
                made.update(call.returned)
        return False

    def play(self, leaves: dict[int, Tensor], *, same_random: bool = False) -> Tensor:
        """The loss with these leaves; ``same_random``: with the random numbers that the program drew."""
        values = {index: tensor.clone() for index, tensor in self.data.items()} | leaves

        def filled(part: Any) -> Any:
            return values[part.index] if isinstance(part, Slot) else part

        for place, call in enumerate(self.calls):
            if same_random and place in self.random:
                torch.set_rng_state(self.random[place])
            values.update(zip(call.returned, tensors_in(call.again(filled)), strict=True))
        return values[self.loss]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tape:
        """Itself: nothing of it changes."""
        return self


def slots_in(value: Any) -> Iterator[int]:
    """The places of all tensors in what was noted down."""
    if isinstance(value, Slot):
        yield value.index
    elif isinstance(value, dict | tuple | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from slots_in(part)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nested tuples, lists and dicts with every other part changed."""
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(mapped(part, change) for part in value)
    return change(value)
