"""The layers of a forward pass whose weight may be set, each weight with all its uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unvanish.torch.init.matrices import Layout
from unvanish.torch.init.ways import AVERAGES, FOLDS, TURNS
from unvanish.torch.wiring import Op, Wiring

_PRODUCTS = {"linear": (0, "weight"), "addmm": (1, "mat2"), "mm": (0, "mat2"), "matmul": (0, "other")}


@dataclass(frozen=True)
class Layer:
    """A linear map of units in a forward pass.

    Attributes:
        index: of its op.
        name: of its weight.
        weight: the parameter.
        bias: the parameter, None where it has none or it must stay.
        layout: of the weight.
        kind: of its op.
        source: op whose output it reads, -1 for the batch.
        place: position of that input among the op's arguments.
        flat: its input has two axes only.
        shared: the weight is used several times in the pass.
    """

    index: int
    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    layout: Layout
    kind: str
    source: int
    place: int
    flat: bool
    shared: bool

    @property
    def axis(self) -> int:
        """Axis of the units in its input: 1 for convolutions, the last for linear maps."""
        return -1 if self.kind == "linear" else 1

    @property
    def units(self) -> int:
        """Input units over all groups."""
        return self.layout.inputs * self.layout.groups

    @staticmethod
    def flat_layout(weight: Tensor) -> Layout:
        """Layout of a linear layer's weight."""
        return Layout(tuple(weight.shape))

    def units_last(self, x: Tensor) -> Tensor:
        """Its input as (samples and places, units)."""
        if self.kind != "linear" and x.ndim < len(self.layout.shape):
            x = x.unsqueeze(0)  # a convolution of one sample without batch axis
        return x.movedim(self.axis, -1).reshape(-1, x.shape[self.axis])

    @property
    def pairs_outputs(self) -> bool:
        """Whether its output units can be mirrored pairs: an even number, all made of the same inputs."""
        return self.layout.groups == 1 and self.layout.outputs % 2 == 0 and not self.shared

    def pairs_inputs(self, maker: Layer, way: tuple[str, ...]) -> bool:
        """Whether the two halves of ``maker``'s units arrive as the two halves of this layer's, after ``way``."""
        if self.shared or self.layout.groups > 1 or self.layout.inputs % maker.layout.outputs:
            return False
        turned = any(name in TURNS for name in way)
        folded = any(name in FOLDS | AVERAGES for name in way)
        same = self.layout.inputs == maker.layout.outputs
        if maker.axis == self.axis:
            return same and not turned and (not folded or self.flat or maker.axis == 1)
        if maker.axis == 1:  # convolution to linear: flattened with the channels outermost, or turned to the end
            return self.flat and not turned if folded else same and turned
        return same and turned and not folded


def layers_of(wiring: Wiring, model: nn.Module, kept: set[int]) -> dict[int, Layer]:
    """Layers by op index: linear maps and convolutions with a plain, trainable weight, at each of its uses.

    A weight that is first used as something else (an embedding that is the head, too) is not among them.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    uses = Counter(id(parameters[name]) for op in wiring.layers() for _, name in op.parameters)
    found: dict[int, Layer] = {}
    taken = set(kept)
    for op in wiring.layers():
        layer = _layer(op, wiring, parameters, kept, uses)
        if layer is not None and id(layer.weight) not in taken:
            found[op.index] = layer
        else:
            taken |= {id(parameters[name]) for _, name in op.parameters}
    return found


def _layer(
    op: Op, wiring: Wiring, parameters: Mapping[str, nn.Parameter], kept: set[int], uses: Counter[int]
) -> Layer | None:
    convolution = op.kind in ("convolution", "transposed_convolution")
    if not convolution and op.name not in _PRODUCTS:
        return None
    place, role = (0, "weight") if convolution else _PRODUCTS[op.name]
    name = op.parameter(role)
    if name is None or len(op.inputs) != 1 or op.computed or (not convolution and parameters[name].ndim != 2):
        return None
    weight = parameters[name]
    given = op.parameter("input" if op.name == "addmm" else "bias")
    bias = parameters[given] if given is not None and id(parameters[given]) not in kept else None
    source = op.inputs[0]
    flat = source < 0 or len(wiring.ops[source].shape) == 2
    layout, shared = _layout(op, weight), uses[id(weight)] > 1
    return Layer(op.index, name, weight, bias, layout, op.kind, source, place, flat, shared)


def _layout(op: Op, weight: nn.Parameter) -> Layout:
    shape = tuple(weight.shape)
    if op.kind == "linear":
        return Layout(shape, transposed=op.name != "linear")
    axes = len(shape) - 2
    groups = int(op.arguments.get("groups", 1))
    return Layout(shape, groups, op.kind == "transposed_convolution", _tuple(op.arguments.get("stride", 1), axes))


def _tuple(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return tuple(int(v) for v in values) * (axes if len(values) == 1 else 1)
