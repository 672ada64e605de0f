"""Signs of life of a network at step 0, from one pass: no labels, no loss, nothing of the model changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.init.measures import log_ratio, noise_like, spread, squared_lengths, unit_lengths
from unvanish.torch.init.nonlinearities import nonlinearities
from unvanish.torch.init.over_time import signs_over_time
from unvanish.torch.init.residual import branches
from unvanish.torch.init.result import Vitals
from unvanish.torch.wiring import Op, Wiring, trace

_PROBES = 8
_POWER_STEPS = 6
_SAMPLES = 16


class _Differentiable(nn.Module):
    """A model run with gradients on: :func:`trace` turns them off."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            return self.model(*args, **kwargs)


class _Seen(Exception):  # noqa: N818
    """The last activation was reached; the rest of the pass is not needed."""


@dataclass(slots=True)
class _Pair:
    """First and last activation on one path, as they go by.

    What a custom ``autograd.Function`` or a scripted one does inside has no gradient; the op behind is next best.
    """

    first: int
    last: int
    start: Tensor | None = None
    vitals: Vitals = Vitals()  # noqa: RUF009

    def __call__(self, op: Op, args: Any, kwargs: Any, result: Any) -> Tensor | None:
        visible = torch.is_grad_enabled() and isinstance(result, Tensor) and result.is_floating_point()
        if self.start is None and (op.index == self.first or self.first in op.inputs):
            self.first = op.index
            self.start = result.detach().clone().requires_grad_() if visible else None
            return self.start.clone() if self.start is not None else None
        if self.start is not None and (op.index == self.last or self.last in op.inputs):
            self.last = op.index
            if visible:
                self.vitals = _between(self.start, result)
                raise _Seen
        return None


def vital_signs(model: nn.Module, inputs: Any, wiring: Wiring) -> Vitals:
    """Gains, separation and stable rank between the first and the last activation, and of recurrent layers over time.

    Args:
        model: the network.
        inputs: what it is called with; the axis of samples comes first.
        wiring: of the same model and inputs.

    Returns:
        The worst of these places' signs; None where there are no two activations on one path and no recurrent layer,
        or something cannot be differentiated.
    """
    places = [_along_the_trunk(model, inputs, wiring)]
    if any(op.kind == "recurrent" for op in wiring.ops):
        places += signs_over_time(model, inputs)
    return max(places, key=_badness)


def _badness(vitals: Vitals) -> tuple[int, float]:
    """Failures first, then the larger of the two gains."""
    gains = [abs(gain) for gain in (vitals.forward, vitals.backward) if gain is not None]
    return len(vitals.failures()), max(gains, default=-1.0)


def _along_the_trunk(model: nn.Module, inputs: Any, wiring: Wiring) -> Vitals:
    ends = _ends(wiring, model)
    if ends is None:
        return Vitals()
    pair = _Pair(*ends)
    kept = [(p, p.grad) for p in model.parameters()]
    try:
        trace(_Differentiable(model), inputs if _time_first(wiring) else _few(inputs), on_op=pair)
    except _Seen:
        pass
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient
    return pair.vitals


def _ends(wiring: Wiring, model: nn.Module) -> tuple[int, int] | None:
    """The first place on the trunk behind a nonlinearity or a residual sum, and the last such one that it reaches.

    Not within a residual branch: the gradient need not pass there, and does not where the branch starts at zero.
    """
    around = branches(wiring)
    aside = {i for branch in around for i in branch.ops}
    curves = nonlinearities(wiring, model)
    others = {op.index for op in wiring.ops if op.kind == "activation"} - {i for n in curves for i in n.members}
    places = {n.exit for n in curves if not n.straight} | others | {branch.merge for branch in around}
    places -= aside
    if not places:
        return None
    first, last = min(places), None
    reached = {first}
    for op in wiring.ops[first + 1 :]:
        if reached.intersection(op.inputs):
            reached.add(op.index)
            last = op.index if op.index in places else last
    return None if last is None else (first, last)


def _time_first(wiring: Wiring) -> bool:
    """Whether the first axis of sequences is time: to cut that would make another network of the same model."""
    return any(op.kind == "recurrent" and op.arguments.get("batch_first") is False for op in wiring.ops)


def _few(inputs: Any) -> Any:
    """The first samples of a batch, where all its tensors have as many."""
    tensors = (
        inputs if isinstance(inputs, (tuple, list)) else list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    )
    if not all(isinstance(t, Tensor) and t.ndim > 0 and len(t) == len(tensors[0]) for t in tensors):
        return inputs
    if isinstance(inputs, dict):
        return {key: value[:_SAMPLES] for key, value in inputs.items()}
    return tuple(t[:_SAMPLES] for t in inputs) if isinstance(inputs, (tuple, list)) else inputs[:_SAMPLES]


def _between(start: Tensor, end: Tensor) -> Vitals:
    first, last = spread(start), spread(end)
    vitals = Vitals()
    if first is not None and last is not None:
        vitals = replace(vitals, forward=log_ratio(last[0], first[0]), separation=last[0] / last[1] if last[1] else 0.0)
    try:
        squares = _squares(start, end)
    except RuntimeError as error:
        if "not implemented" in str(error):  # an op without derivative, such as heaviside
            return vitals
        raise
    width = min(start.numel(), end.numel()) / len(start)
    vitals = replace(vitals, backward=log_ratio(float((squares.mean() / width).sqrt()), 1.0))
    try:
        return replace(vitals, rank=_stable_rank(start, end, squares))
    except RuntimeError:  # an op without second derivative, such as fused attention: not observed
        return vitals


def _squares(start: Tensor, end: Tensor) -> Tensor:
    """Squared Frobenius norm of each sample's Jacobian, by random cotangents; zero where no gradient gets through."""
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros(len(start), dtype=torch.float64)
    for _ in range(_PROBES if end.requires_grad else 0):
        (row,) = torch.autograd.grad(end, start, noise_like(end, generator), retain_graph=True, allow_unused=True)
        squares += 0 if row is None else squared_lengths(row) / _PROBES
    return squares


def _stable_rank(start: Tensor, end: Tensor, squares: Tensor) -> float | None:
    """Mean over samples of the squared Frobenius norm over the largest squared singular value, by power steps.

    J v is the derivative, with respect to the cotangent, of the vector-Jacobian product.
    """
    seed = torch.zeros_like(end, requires_grad=True)
    (pulled,) = torch.autograd.grad(end, start, seed, create_graph=True)
    direction = noise_like(start, torch.Generator().manual_seed(1))
    largest = torch.zeros_like(squares)
    for _ in range(_POWER_STEPS):
        (pushed,) = torch.autograd.grad(pulled, seed, unit_lengths(direction), retain_graph=True)
        largest = squared_lengths(pushed)
        (direction,) = torch.autograd.grad(end, start, unit_lengths(pushed), retain_graph=True)
    alive = (largest > 0) & torch.isfinite(largest) & torch.isfinite(squares)
    return float((squares[alive] / largest[alive]).mean()) if bool(alive.any()) else None
