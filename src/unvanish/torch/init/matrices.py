"""Random matrices that keep lengths, and where in a layer's weight they go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def semi_orthogonal(
    count: int, rows: int, columns: int, *, like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """``count`` random matrices of shape (rows, columns), uniform over those with orthonormal rows or columns.

    Args:
        count: how many.
        rows: outputs.
        columns: inputs.
        like: the weight they are for; sixteen-bit weights get 32-bit matrices.
        generator: source of randomness; torch's own where not given.

    Returns:
        Shape (count, rows, columns).

    Source: Saxe et al. 2014 (arXiv:1312.6120); Mezzadri 2007 (arXiv:math-ph/0609050) for the signs.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    shape = (count, max(rows, columns), min(rows, columns))
    q, r = torch.linalg.qr(_empty(shape, dtype, generator).normal_(generator=generator))
    q *= r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    turned: Tensor = q if rows >= columns else q.transpose(-2, -1)
    return turned.to(like.device)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    """Where random numbers are drawn: the generator's device, or the CPU, so that a seed means the same everywhere."""
    return torch.empty(shape, dtype=dtype, device=generator.device if generator is not None else "cpu")


@torch.no_grad()
def normal_(weight: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Independent normal numbers with mean 0, in place, whatever the weight's device."""
    weight.copy_(_empty(tuple(weight.shape), weight.dtype, generator).normal_(0, std, generator=generator))


@torch.no_grad()
def uniform_(weight: Tensor, bound: float, generator: torch.Generator | None) -> None:
    """Independent uniform numbers in [-bound, bound], in place, whatever the weight's device."""
    weight.copy_(_empty(tuple(weight.shape), weight.dtype, generator).uniform_(-bound, bound, generator=generator))


def wide(x: Tensor) -> Tensor:
    """A copy to measure on: float64, on the CPU, as some accelerators have no float64."""
    return x.detach().to("cpu", torch.float64)


def length_keeping(rows: int, columns: int) -> float:
    """Factor by which a semi-orthogonal matrix keeps the root-mean-square of its input in its output."""
    return math.sqrt(max(1.0, rows / columns))


def without_direction(matrices: Tensor, direction: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Semi-orthogonal matrices of the same shape that map ``direction``, shape (columns,), to zero.

    They are drawn one column smaller and turned into the hyperplane by the Householder reflection that takes the
    last axis to the direction.
    """
    count, rows, columns = matrices.shape
    small = semi_orthogonal(count, rows, columns - 1, like=matrices, generator=generator)
    small = torch.cat([small, small.new_zeros(count, rows, 1)], dim=2)
    mirror = direction / direction.norm()
    mirror = mirror - torch.eye(columns, dtype=mirror.dtype, device=mirror.device)[-1]
    if mirror.norm() < 1e-6:
        return small
    mirror = (mirror / mirror.norm()).to(small)
    reflected: Tensor = small - 2 * (small @ mirror).unsqueeze(-1) * mirror
    return reflected


@dataclass(frozen=True)
class Layout:
    """How the weight of a linear map over units lies in memory.

    Attributes:
        shape: of the weight.
        groups: blocks of units that do not see each other (grouped convolutions; the gates of a recurrent layer).
        transposed: the weight's first axis is the inputs', as in transposed convolutions.
        stride: of the convolution, one number per axis of its kernel; () for a linear layer.
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    stride: tuple[int, ...] = ()

    @property
    def kernel(self) -> tuple[int, ...]:
        """Size of the kernel, () for a linear layer."""
        return self.shape[2:]

    @cached_property
    def taps(self) -> int:
        """Places of the kernel."""
        return math.prod(self.kernel)

    @property
    def inputs(self) -> int:
        """Input units of one group."""
        return self.shape[0] // self.groups if self.transposed else self.shape[1]

    @property
    def outputs(self) -> int:
        """Output units of one group."""
        return self.shape[1] if self.transposed else self.shape[0] // self.groups

    @property
    def strided(self) -> bool:
        """Whether it leaves places out (or, transposed, fills places in)."""
        return any(step > 1 for step in self.stride)

    @property
    def meeting(self) -> float:
        """Taps that meet in one output: all of a kernel, a transposed one's share by its stride."""
        return max(1.0, self.taps / math.prod(self.stride)) if self.transposed and self.stride else self.taps

    @property
    def fans(self) -> tuple[float, float]:
        """Weights that meet in one output, and outputs that one input reaches."""
        steps = math.prod(self.stride) if self.stride else 1
        spread = self.taps if self.transposed else max(1.0, self.taps / steps)
        return self.inputs * self.meeting, self.outputs * spread

    def write(self, weight: Tensor, kernels: Tensor) -> None:
        """Copy kernels of shape (groups, outputs, inputs, taps) into a weight, in place."""
        ordered = kernels.transpose(1, 2) if self.transposed else kernels
        with torch.no_grad():
            weight.copy_(ordered.reshape(self.shape))

    def read(self, weight: Tensor) -> Tensor:
        """A weight as kernels of shape (groups, outputs, inputs, taps)."""
        first = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        kernels = weight.detach().reshape(self.groups, *first, self.taps)
        return kernels.transpose(1, 2) if self.transposed else kernels

    def places(self, *, patch: bool) -> list[int]:
        """The taps that get a matrix.

        Each its own with ``patch``; else the one at the centre, which passes every unit straight on, or, in a
        transposed convolution, as many around the centre as it takes to fill every output.
        """
        if patch:
            return list(range(self.taps))
        if not self.kernel:
            return [0]
        width = self.stride if self.transposed else (1,) * len(self.kernel)
        axes = [_middle(size, min(size, step)) for size, step in zip(self.kernel, width, strict=True)]
        return _flat(axes, self.kernel)


def _middle(size: int, width: int) -> range:
    start = (size - width) // 2
    return range(start, start + width)


def _flat(axes: Sequence[range], kernel: Sequence[int]) -> list[int]:
    """Indices into the flattened kernel of all combinations of places on its axes."""
    places = [0]
    for axis, size in zip(axes, kernel, strict=True):
        places = [place * size + i for place in places for i in axis]
    return places
