"""Which weights meet in one output unit: a row in most layers, in a transposed convolution something else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

_LAYERS = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class Fan:
    r"""A weight, and where in it the weights lie that meet in one output.

    A row of it, unless it is a transposed convolution's. There the first axis is the inputs', one block for each group,
    and of the kernel an output meets every s-th tap,

    .. math:: y_{o,p} = \sum_i \sum_{t:\ t d \equiv p - q \pmod{stride}} W_{i,o,t} x_{i, (p - t d) / stride},\quad
              s = stride / \gcd(stride, d)

    for dilation d: outputs at different places p see different taps, and each of these sets has a mean of its own.

    Attributes:
        weight: the parameter.
        groups: blocks of inputs on its first axis; 0 where that axis is the outputs'.
        steps: s for each axis of the kernel.
    """

    weight: Tensor
    groups: int = 0
    steps: tuple[int, ...] = ()

    def parts(self, values: Tensor) -> Iterator[Tensor]:
        """Views of the weight, or of something of its shape, as (groups, outputs, weights that meet...)."""
        if not self.groups:
            yield values.unsqueeze(0)
            return
        units = values.unflatten(0, (self.groups, -1)).transpose(1, 2)
        starts = (range(min(step, size)) for step, size in zip(self.steps, values.shape[2:], strict=True))
        for start in product(*starts):
            yield units[(..., *(slice(first, None, step) for first, step in zip(start, self.steps, strict=True)))]

    def center_(self, values: Tensor) -> None:
        """Take the mean out of each set of values that belong to weights which meet, in place."""
        for part in self.parts(values):
            part.sub_(part.mean(dim=tuple(range(2, part.ndim)), keepdim=True))

    def means(self) -> list[Tensor]:
        """Means of the weights that meet, accurate enough that differences of two are: they are far above updates."""
        weight = self.weight.detach()
        wide = torch.complex128 if weight.is_complex() else torch.float64
        if weight.device.type == "mps":  # has no float64
            wide = torch.float32
        return [p.mean(dim=tuple(range(2, p.ndim)), keepdim=True, dtype=wide) for p in self.parts(weight)]

    def put_back_(self, means: list[Tensor]) -> None:
        """Move the weights that meet to these means, in place."""
        for part, now, before in zip(self.parts(self.weight.detach()), self.means(), means, strict=True):
            part.sub_((now - before).to(part.dtype))


def fans_of(model: nn.Module) -> list[Fan]:
    """Of each weight of linear, convolution, recurrent and attention layers, once."""
    found: dict[int, Fan] = {}
    for module in model.modules():
        if isinstance(module, _LAYERS):
            for name, weight in module.named_parameters(recurse=False):
                if "weight" in name:
                    found.setdefault(id(weight), _fan(module, weight))
    return list(found.values())


def rows_of(parameters: Iterable[Tensor]) -> list[Fan]:
    """Of parameters of which no more is known: each row's weights meet."""
    return [Fan(p) for p in parameters]


def _fan(module: nn.Module, weight: Tensor) -> Fan:
    if not isinstance(module, _ConvTransposeNd):
        return Fan(weight)
    sizes = zip(module.stride, module.dilation, strict=True)
    return Fan(weight, module.groups, tuple(stride // math.gcd(stride, dilation) for stride, dilation in sizes))
