"""What a piece is differentiated by, and how it is moved along a direction and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unvanish.torch.gradcheck.values import Held, real


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A tensor that the piece is differentiated by; ``base`` has its numbers (see ``real``)."""

    name: str
    base: Tensor
    parameter: nn.Parameter | None = None
    held: Held | None = None
    log_probabilities: bool = False
    padding: int | None = None  # this row stays
    excused: bool = False  # all of it stays


@dataclass(frozen=True, slots=True)
class Move:
    """Parameters are written in place, inputs handed out anew: ``bases``, ``shifts`` and where they go."""

    data: list[Tensor]  # of the parameters that move: .data has no version for autograd
    data_bases: list[Tensor]
    data_shifts: list[Tensor]
    inputs: list[Leaf]  # that move
    input_bases: list[Tensor]  # with a gradient: the same branches as with one
    input_shifts: list[Tensor]
    still: list[Leaf]  # inputs that do not

    @classmethod
    def of(cls, leaves: Sequence[Leaf], shifts: Sequence[Tensor | None]) -> Move:
        """Parameters without a shift are left alone."""
        pairs = [(leaf, shift) for leaf, shift in zip(leaves, shifts, strict=True) if shift is not None]
        own = [(leaf.parameter, leaf.base, shift) for leaf, shift in pairs if leaf.parameter is not None]
        given = [(leaf, shift) for leaf, shift in pairs if leaf.parameter is None]
        return cls(
            [real(parameter.data) for parameter, _, _ in own],
            [base for _, base, _ in own],
            [shift for _, _, shift in own],
            [leaf for leaf, _ in given],
            [leaf.base.detach().requires_grad_() for leaf, _ in given],
            [shift for _, shift in given],
            [leaf for leaf, shift in zip(leaves, shifts, strict=True) if shift is None and leaf.held is not None],
        )

    def to(self, step: float) -> dict[Held, Tensor]:
        """Write the moved parameters, return the moved inputs."""
        for data, base, shift in zip(self.data, self.data_bases, self.data_shifts, strict=True):
            torch.add(base, shift, alpha=step, out=data)
        moved = torch._foreach_add(self.input_bases, self.input_shifts, alpha=step) if self.inputs else ()
        unmoved = (leaf.base.detach().requires_grad_().clone() for leaf in self.still)
        entries = [*zip(self.inputs, moved, strict=True), *zip(self.still, unmoved, strict=True)]
        return {leaf.held: _entry(leaf, leaf.held, there) for leaf, there in entries if leaf.held is not None}

    def back(self) -> None:
        """The parameters as they were."""
        if self.data:
            torch._foreach_copy_(self.data, self.data_bases)


def _entry(leaf: Leaf, held: Held, there: Tensor) -> Tensor:
    return there.log_softmax(-1) if leaf.log_probabilities else as_given(held, there)


def as_given(held: Held, values: Tensor) -> Tensor:
    """Real and imaginary parts as the complex numbers that the program knows."""
    return torch.view_as_complex(values) if held.data.is_complex() else values
