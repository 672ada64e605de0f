"""The recurrent layers of a forward pass, each layer and direction taken out to be run by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.wiring import Op, trace

State = tuple[Tensor, ...]
_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Recurrence:
    """One layer and direction, with the sequences it saw.

    Attributes:
        name: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        weights: input and hidden ones, then, where it has them, two biases and an LSTM's projection.
        x: its inputs in the order of its steps, of shape (steps, samples, features).
        state: where it starts, of shape (samples, width) each: (h,), or (h, c) of an LSTM.
        label: which one it is, in words.
    """

    name: str
    weights: tuple[Tensor, ...]
    x: Tensor
    state: State
    label: str

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs at all steps of ``x``, and the state after the last one."""
        function: Any = getattr(torch, self.name)
        hx = tuple(part.unsqueeze(0) for part in state)
        start = hx if self.name == "lstm" else hx[0]
        biased = len(self.weights) > 3
        outputs, *last = function(x, start, self.weights, biased, 1, 0.0, True, False, False)
        return outputs, tuple(part[0] for part in last)


def recurrences(model: nn.Module, inputs: Any) -> Iterator[Recurrence]:
    """All of them, in execution order, on a few samples; without the dropout between layers.

    A module or cell that the model calls step by step is one sequence.
    """
    calls: dict[str, list[_Call]] = {}

    def collect(op: Op, args: Any, kwargs: Any, result: Any) -> None:
        if op.kind == "recurrent":
            calls.setdefault(op.module, []).append(
                _of_cell(op, args, result) if _is_cell(op) else _of_layers(op, args, result)
            )

    trace(model, inputs, on_op=collect)
    for module, found in calls.items():
        yield from _taken_apart(_joined(found), module)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a recurrent function.

    Attributes:
        name: as :attr:`Recurrence.name`.
        x: sequences of full length, time first.
        states: first states, of shape (layers and directions, samples, width).
        last: the last h, likewise.
        weights: by layer and direction.
        directions: 1 or 2.
    """

    name: str
    x: Tensor
    states: State
    last: Tensor
    weights: tuple[tuple[Tensor, ...], ...]
    directions: int


def _is_cell(op: Op) -> bool:
    return op.name.endswith("_cell")


def _of_cell(op: Op, args: Any, result: Any) -> _Call:
    x, hx, *weights = args
    states, (last, *_) = _states(hx), _states(result)
    few = slice(_SAMPLES)
    own = tuple(_exact(weight) for weight in weights if weight is not None)
    first = tuple(_exact(state[None, few]) for state in states)
    return _Call(op.name.removesuffix("_cell"), _exact(x[None, few]), first, _exact(last[None, few]), (own,), 1)


def _of_layers(op: Op, args: Any, result: Any) -> _Call:
    packed = isinstance(args[1], Tensor) and not args[1].is_floating_point()
    if packed:  # longest sequences first, at every step
        x, sizes, hx, flat = args[:4]
        x = torch.stack([step[: int(sizes[-1])] for step in x.split(sizes.tolist())])
    else:
        x, hx, flat = args[:3]
        x = x.transpose(0, 1) if op.arguments["batch_first"] else x
    last, few = result[1], slice(min(_SAMPLES, x.shape[1]))
    each = len(flat) // len(last)
    weights = tuple(tuple(_exact(w) for w in flat[i : i + each]) for i in range(0, len(flat), each))
    states = tuple(_exact(state[:, few]) for state in _states(hx))
    return _Call(op.name, _exact(x[:, few]), states, _exact(last[:, few]), weights, 1 + op.arguments["bidirectional"])


def _states(hx: Any) -> State:
    return tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)


def _exact(x: Tensor) -> Tensor:
    """A copy on the CPU, where loose weights run without complaint, in 32 bits or more; the model's own stays."""
    return x.detach().to("cpu", torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True)


def _joined(calls: list[_Call]) -> _Call:
    """One sequence, where each call began in the state that the one before it left; else the longest call."""
    longest = max(calls, key=lambda call: len(call.x))
    first, last = calls[0], calls[-1]
    if len(calls) == 1 or first.directions == 2 or len({call.x.shape[1:] for call in calls}) > 1:
        return longest
    whole = replace(first, x=torch.cat([call.x for call in calls]), last=last.last)
    _, state = next(_taken_apart(whole, "")).run(whole.x, tuple(state[0] for state in whole.states))
    return whole if torch.allclose(state[0], whole.last[0], rtol=1e-3, atol=1e-5) else longest


def _taken_apart(call: _Call, module: str) -> Iterator[Recurrence]:
    x, layers = call.x, len(call.weights) // call.directions
    for layer in range(layers):
        outputs = []
        for direction in range(call.directions):
            index = layer * call.directions + direction
            label = (
                f"{module or call.name}"
                + (f", layer {layer + 1}" if layers > 1 else "")
                + (", in reverse" if direction else "")
            )
            own = x.flip(0) if direction else x
            one = Recurrence(call.name, call.weights[index], own, tuple(s[index] for s in call.states), label)
            yield one
            with torch.no_grad():
                result, _ = one.run(one.x, one.state)
            outputs.append(result.flip(0) if direction else result)
        x = torch.cat(outputs, dim=-1)
