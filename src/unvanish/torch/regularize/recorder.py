"""What Omega needs of a forward pass: where each layer's input and output lie in the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from unvanish.torch.wiring.kinds import plain_name

_LAYERS = frozenset({"linear", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3))})
_CELLS = frozenset({"rnn_tanh_cell", "rnn_relu_cell", "lstm_cell", "gru_cell"})
_KERNELS = frozenset({"rnn_tanh", "rnn_relu", "lstm", "gru"})
_PRODUCTS = frozenset({"matmul", "mm"})


@dataclass(frozen=True, slots=True)
class LayerCall:
    """A linear map: ``function(input, weight, *rest)``. ``into`` is None where no gradient leaves the layer."""

    function: Callable[..., Tensor]
    weight: Tensor
    rest: tuple[Any, ...]
    named: dict[str, Any]
    into: GradientEdge | None
    out: GradientEdge
    shape: torch.Size  # of the output


@dataclass(frozen=True, slots=True)
class CellCall:
    """One step of a recurrent cell: states before and after, without their graph."""

    name: str
    inputs: Tensor
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]  # w_ih, w_hh, and the biases where there are any
    into: Node | None  # who made the first state before
    out: tuple[GradientEdge, ...]


@dataclass(frozen=True, slots=True)
class KernelCall:
    """A whole sequence through a fused recurrent layer, time first."""

    name: str
    inputs: Tensor
    initial: tuple[Tensor, ...]  # each (layers * directions, samples, features)
    outputs: Tensor
    weights: tuple[Tensor, ...]
    per_cell: int  # weights of one layer and direction
    directions: int
    dropout: float
    batch_first: bool
    out: tuple[GradientEdge, ...]  # outputs, then the last states


class Recorder(TorchFunctionMode):
    """Watches every torch call; each layer gets its own view of its input, so that its gradient is its alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[LayerCall] = []
        self.cells: list[CellCall] = []
        self.kernels: list[KernelCall] = []
        self.packed = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = plain_name(func)
        if torch.is_grad_enabled():
            if name in _CELLS:
                return self._cell(name, func, args)
            if name in _KERNELS:
                return self._kernel(name, func, args)
            if name in _LAYERS or name in _PRODUCTS:
                return self._layer(name, func, args, dict(kwargs))
        return func(*args, **kwargs)

    def _layer(self, name: str, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        x, *rest = args if args else (named.pop("input"),)
        weight = rest.pop(0) if rest else named.pop("weight", None)
        if not _is_map(name, x, weight):
            return func(x, *(() if weight is None else (weight,)), *rest, **named)
        into = x.view_as(x) if x.requires_grad else x
        result = func(into, weight, *rest, **named)
        if result.requires_grad:
            rest = [None, *rest[1:]] if rest else []
            named = {key: value for key, value in named.items() if key != "bias"}
            edge = get_gradient_edge(into) if x.requires_grad else None
            out = get_gradient_edge(result)
            self.layers.append(LayerCall(func, weight, tuple(rest), named, edge, out, result.shape))
        return result

    def _cell(self, name: str, func: Any, args: tuple[Any, ...]) -> Any:
        x, state, *weights = args
        before: tuple[Tensor, ...] = tuple(state) if isinstance(state, (tuple, list)) else (state,)
        result = func(*args)
        results = result if isinstance(result, tuple) else (result,)
        if not all(part.requires_grad for part in results):
            return result
        after = tuple(part.view_as(part) for part in results)  # without the way from c to h in the same step
        out = tuple(get_gradient_edge(part) for part in after)
        kept = tuple(weight for weight in weights if weight is not None)
        before_, after_ = (tuple(part.detach() for part in state) for state in (before, after))
        self.cells.append(CellCall(name, x.detach(), before_, after_, kept, before[0].grad_fn, out))
        return after if isinstance(result, tuple) else after[0]

    def _kernel(self, name: str, func: Any, args: tuple[Any, ...]) -> Any:
        result = func(*args)
        if not isinstance(args[3], bool):  # (data, batch_sizes, state, weights, ...)
            self.packed += 1
            return result
        x, state, weights, biases, _, dropout, training, bidirectional, batch_first = args
        if not all(part.requires_grad for part in result):
            return result
        initial = tuple(state) if isinstance(state, (tuple, list)) else (state,)
        self.kernels.append(
            KernelCall(
                name=name,
                inputs=x.detach(),
                initial=tuple(part.detach() for part in initial),
                outputs=result[0].detach(),
                weights=tuple(weights),
                per_cell=4 if biases else 2,
                directions=2 if bidirectional else 1,
                dropout=dropout if training else 0.0,
                batch_first=batch_first,
                out=tuple(get_gradient_edge(part) for part in result),
            )
        )
        return result


def _is_map(name: str, x: Any, weight: Any) -> bool:
    """Is this data times a weight? In a bare product only a parameter, or a view of one, is known to be a weight."""
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or weight.ndim < 2:
        return False
    made_of = weight._base if weight._is_view() and weight._base is not None else weight
    return name in _LAYERS or (isinstance(made_of, torch.nn.Parameter) and not isinstance(x, torch.nn.Parameter))
