"""Functions whose forward is right and whose derivative, worked out by hand, is wrong in a known way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class ScaledSigmoid(Function):
    """The logistic function; backward gives ``factor`` times its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        y = x.sigmoid()
        ctx.save_for_backward(y)
        ctx.factor = factor
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return ctx.factor * grad * y * (1 - y), None


class NewStyleCube(Function):
    """x^3, written with setup_context; backward forgets the factor 3."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0] ** 2


class OneEntry(Function):
    """x W^T; the gradient of W is right but for one entry, which is doubled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, entry: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.entry = entry
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        by_weight = grad.flatten(0, -2).T @ x.flatten(0, -2)
        by_weight[ctx.entry] *= 2
        return grad @ weight, by_weight, None


class NoGradient(Function):
    """x^2 whose backward returns None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


class Raises(Function):
    """Its backward raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise KeyError("no such thing")


class Tripled(nn.Module):
    """A sigmoid module with a derivative wrong by a factor."""

    def __init__(self, factor: float = -3.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return ScaledSigmoid.apply(x, self.factor)


class OneEntryLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int, entry: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.entry = entry

    def forward(self, x: Tensor) -> Tensor:
        return OneEntry.apply(x, self.weight, self.entry)


class HandMadeLinear(nn.Linear):
    """Right forward; a hook multiplies the gradient of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight, self.bias)
        weight = self.weight.detach()
        return y + (nn.functional.linear(x, weight) - nn.functional.linear(x, weight).detach())


class Functional(nn.Module):
    """A sigmoid network written with functions: which activation of it is ``wrong``, by which factor."""

    def __init__(self, depth: int, width: int = 8, wrong: int | None = 0, factor: float = -3.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.wrong, self.factor = wrong, factor

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            h = layer(x)
            x = ScaledSigmoid.apply(h, self.factor) if k == self.wrong else h.sigmoid()
        return x


def modular(depth: int, width: int = 8, wrong: int | None = 0, factor: float = -3.0) -> nn.Sequential:
    """The same network written with modules."""
    layers: list[nn.Module] = []
    for k in range(depth):
        layers += [nn.Linear(width, width), Tripled(factor) if k == wrong else nn.Sigmoid()]
    return nn.Sequential(*layers)
