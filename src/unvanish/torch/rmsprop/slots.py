"""The tensors of one parameter, found or created, brought into the one form the updates work on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from unvanish.torch.rmsprop.formula import Values
from unvanish.torch.rmsprop.settings import Settings, widened

State = dict[str, Any]


class Slot(NamedTuple):
    """A parameter with a gradient: real tensors; ``flat``: all of one shape, dense, and in one order in memory."""

    state: State
    p: Tensor
    g: Tensor
    v: Tensor
    m: Tensor | None
    b: Tensor | None
    correction: float | Tensor
    flat: bool = False

    @property
    def values(self) -> Values:
        """Everything but the gradient."""
        return Values(self.p, self.v, self.m, self.b)


def average_of(p: Tensor, state: State, s: Settings) -> Tensor:
    """The average square before the first step."""
    v = _zeros(p)
    if s.initial_accumulator:
        _pairs(v).fill_(s.initial_accumulator)
    state["square_avg"] = v
    return v


def buffer_of(key: str, p: Tensor, state: State) -> Tensor:
    """Of zeros where there is none yet: momentum and centring may be turned on in the middle of a training."""
    if key not in state:
        state[key] = _zeros(p)
    buffer: Tensor = state[key]
    return buffer


def _zeros(p: Tensor) -> Tensor:
    return torch.zeros_like(p, dtype=widened(p.dtype), memory_format=torch.preserve_format, requires_grad=False)


def correction_of(p: Tensor, state: State, s: Settings) -> float | Tensor:
    """Count the step; the bias correction 1 / (1 - rho^t) where it is wanted, else 1."""
    if not s.capturable:
        step = state["step"] = int(state.get("step", 0)) + 1
        return 1 / (1 - s.rho**step) if s.bias_correction else 1.0
    if not isinstance(state.get("step"), Tensor):  # a graph replays the same numbers: this one has to be a tensor
        state["step"] = torch.full((), float(state.get("step", 0)), dtype=torch.float32, device=p.device)
    state["step"] += 1
    wide = torch.float64 if p.dtype in (torch.float64, torch.complex128) else torch.float32
    return 1 / (1 - s.rho ** state["step"].to(wide)) if s.bias_correction else 1.0


def in_order(slot: Slot, s: Settings) -> Slot:
    """Dense gradients, complex numbers as pairs of real ones (as in torch.optim), all in the parameter's order."""
    if not s.differentiable and _usual(slot):
        return slot._replace(flat=True)
    g = slot.g.resolve_neg() if slot.g.layout is torch.strided else slot.g.to_dense()
    slot = slot._replace(p=_pairs(slot.p), g=_pairs(g), v=_pairs(slot.v), m=_opened(slot.m), b=_opened(slot.b))
    state_in_order = all(_like(slot.p, tensor) for tensor in (slot.v, slot.m, slot.b) if tensor is not None)
    if s.differentiable or type(slot.g) is not Tensor or not solid(slot.p) or not state_in_order:
        return slot
    g = slot.g if _like(slot.p, slot.g) else torch.empty_like(slot.p, dtype=slot.g.dtype).copy_(slot.g)
    return Slot(
        slot.state, _line(slot.p), _line(g), _line(slot.v), _lined(slot.m), _lined(slot.b), slot.correction, True
    )


def _usual(slot: Slot) -> bool:
    contiguous = all(tensor is None or tensor.is_contiguous() for tensor in slot[1:6])
    plain = slot.g.layout is torch.strided and not (slot.g.is_complex() or slot.g.is_neg())
    return contiguous and plain and type(slot.g) is Tensor


def _pairs(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _opened(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _pairs(tensor)


def _like(p: Tensor, other: Tensor) -> bool:
    return other.shape == p.shape and other.stride() == p.stride()


def solid(tensor: Tensor) -> bool:
    """Every place between its first and last number is its own, once."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _line(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


def _lined(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _line(tensor)
