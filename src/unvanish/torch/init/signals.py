"""Following a signal through a plain chain: which layer made it, how many activations ago, and the way since."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn

from unvanish.torch.init.layers import Layer, layers_of
from unvanish.torch.init.nonlinearities import Nonlinearity, nonlinearities
from unvanish.torch.init.roles import Roles, roles_of
from unvanish.torch.init.ways import AVERAGES, FOLDS, SAME, TURNS
from unvanish.torch.wiring import Op, Wiring


@dataclass(frozen=True, slots=True)
class Signal:
    """What is known of an op's output: where it comes from, and the way since.

    Attributes:
        chain: number of the chain of layers it lies on.
        depth: activations on that chain so far.
        code: exit of the nonlinearity whose value it is, None for a layer's own output.
        way: names of the ops since.
        layer: the layer that made it.
    """

    chain: int
    depth: int
    code: int | None
    way: tuple[str, ...]
    layer: Layer


@dataclass(frozen=True)
class Reading:
    """A network as the plan sees it.

    Attributes:
        wiring: of one forward pass.
        layers: by op index.
        roles: of the layers.
        curves: its nonlinearities.
        signals: what is known of each op's output; nothing behind merges, norms and whatever else is no plain chain.
    """

    wiring: Wiring
    layers: dict[int, Layer]
    roles: Roles
    curves: list[Nonlinearity]
    signals: dict[int, Signal] = field(default_factory=dict)

    @cached_property
    def lengths(self) -> Counter[int]:
        """Activations in a row, by chain."""
        longest: Counter[int] = Counter()
        for signal in self.signals.values():
            longest[signal.chain] = max(longest[signal.chain], signal.depth)
        return longest


def read(wiring: Wiring, model: nn.Module, kept: set[int]) -> Reading:
    """Layers, roles, nonlinearities and signals of one forward pass."""
    layers = layers_of(wiring, model, kept)
    reading = Reading(wiring, layers, roles_of(wiring, list(layers)), nonlinearities(wiring, model))
    curves = {curve.exit: curve for curve in reading.curves}
    for op in wiring.ops:
        signal = _signal(op, reading, curves.get(op.index))
        if signal is not None:
            reading.signals[op.index] = signal
    return reading


def _signal(op: Op, reading: Reading, curve: Nonlinearity | None) -> Signal | None:
    signals = reading.signals
    before = signals.get(op.inputs[0]) if op.inputs else None
    if op.index in reading.layers:
        if reading.roles.of[op.index] != "chain":
            return None
        layer = reading.layers[op.index]
        return replace(before, code=None, way=(), layer=layer) if before else Signal(op.index, 0, None, (), layer)
    start = signals.get(curve.source) if curve is not None else None
    if curve is not None and start is not None and start.code is None:
        if not curve.alone or set(start.way) & AVERAGES:
            return None
        return replace(start, depth=start.depth + (not curve.straight), code=op.index, way=())
    return replace(before, way=(*before.way, op.name)) if before is not None and _passes(op) else None


def _passes(op: Op) -> bool:
    return len(op.inputs) == 1 and (op.kind == "dropout" or op.name in SAME | TURNS | FOLDS | AVERAGES)
