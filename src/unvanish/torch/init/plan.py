"""What each layer will be initialised to, decided from the wiring alone, before any weight changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from unvanish.theory import operating_point, standardized
from unvanish.torch.init.layers import Layer, layers_of
from unvanish.torch.init.nonlinearities import Nonlinearity, nonlinearities
from unvanish.torch.init.residual import Branch, branches
from unvanish.torch.wiring import Op, Wiring

Method = Literal["auto", "operating point", "mirrored"]
Role = Literal["chain", "he", "zero", "small", "xavier"]
_SAME = frozenset({"contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type", "pad"})
_TURNS = frozenset({"permute", "transpose", "swapaxes", "movedim", "t"})
_FOLDS = frozenset({"flatten", "view", "reshape", "ravel", "squeeze", "unsqueeze", "unflatten"})
_AVERAGES = frozenset({"avg_pool1d", "avg_pool2d", "avg_pool3d", "mean"}) | {
    f"adaptive_avg_pool{n}d" for n in (1, 2, 3)
}


@dataclass(frozen=True, slots=True)
class Code:
    """How units carry a signal x of mean 0 and variance 1 through an activation.

    ``alpha x + beta`` goes in, ``mean + x / gamma`` comes out, nearly; mirrored: x and -x go into the two halves of
    the units, and ``slope x`` is the difference of what comes out.
    """

    alpha: float = 1.0
    beta: float = 0.0
    mean: float = 0.0
    gamma: float = 1.0
    slope: float | None = None  # of the mirrored pair


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


@dataclass(frozen=True, slots=True)
class Step:
    """One layer's part of the plan.

    Attributes:
        layer: where its weight is.
        role: "chain" keeps the signal's length and codes it for the activation behind; "he" keeps the length on
            average; "zero" ends a residual branch; "xavier" projects for attention.
        source: code of the input, None where it has to be measured.
        measured: the input's length has to be measured, though its code is known (averages shorten it).
        target: code of the activation behind.
        maker: the layer that made the input's signal, None where that is not known.
        small: factor on the weights of a branch that cannot start at zero: one over the number of branches.
    """

    layer: Layer
    role: Role
    source: Code | None
    measured: bool
    target: Code
    maker: int | None
    small: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps by op index, the length of every chain of activations, and the ops that end residual branches."""

    steps: dict[int, Step]
    depths: tuple[int, ...]
    ends: frozenset[int]


def make_plan(wiring: Wiring, model: nn.Module, kept: set[int], method: Method) -> Plan:
    """Decide roles, chains and codes."""
    layers = layers_of(wiring, model, kept)
    around = branches(wiring)
    closed = (branch for branch in around if branch.closed)
    ends = frozenset(end for branch in closed if (end := _last_layer(wiring, branch)) is not None)
    roles = _roles(wiring, layers, around, ends)
    curves = nonlinearities(wiring, model)
    signals = _follow(wiring, layers, roles, {n.exit: n for n in curves})
    lengths: Counter[int] = Counter()
    for signal in signals.values():
        lengths[signal.chain] = max(lengths[signal.chain], signal.depth)
    codes, coded = _codes(wiring, curves, signals, layers, roles, lengths, method)
    steps = {}
    for index, layer in layers.items():
        before = signals.get(layer.source)
        source = None if before is None else Code() if before.code is None else codes.get(before.code)
        measured = before is not None and any(name in _AVERAGES for name in before.way)
        target = coded.get(index, Code())
        maker = None if before is None else before.layer.index
        steps[index] = Step(layer, roles[index], source, measured, target, maker, 1 / max(1, len(around)))
    depths = tuple(sorted((n for n in lengths.values() if n), reverse=True))
    return Plan(_at_first_use(steps), depths, ends)


def _at_first_use(steps: dict[int, Step]) -> dict[int, Step]:
    """One step for each weight, when it is first used; it suits the last use, as that is what most of them are like."""
    first: dict[int, int] = {}
    for index, step in steps.items():
        first.setdefault(id(step.layer.weight), index)
    last = {id(step.layer.weight): step for step in steps.values()}
    return {
        index: steps[index]
        if not last[weight].layer.shared
        else replace(last[weight], layer=steps[index].layer, maker=None)
        for weight, index in first.items()
    }


def _roles(wiring: Wiring, layers: dict[int, Layer], around: list[Branch], ends: frozenset[int]) -> dict[int, Role]:
    inside = {i for branch in around for i in branch.ops}
    closed = (branch for branch in around if branch.closed)
    bent = {end for branch in closed if (end := _last_layer(wiring, branch, bent=True)) is not None} - ends
    roles: dict[int, Role] = {}
    for index in layers:
        if index in ends:
            roles[index] = "zero"
        elif index in bent:
            roles[index] = "small"
        elif _feeds(wiring, index, ("attention", "softmax"), ("view", "scale", "dropout", "normalization", "merge")):
            roles[index] = "xavier"
        elif index in inside or _feeds(wiring, index, ("normalization",), ("view", "dropout", "pool")):
            roles[index] = "he"
        else:
            roles[index] = "chain"
    return roles


def _last_layer(wiring: Wiring, branch: Branch, *, bent: bool = False) -> int | None:
    """The layer that ends a branch: nothing behind it but views and dropout, and, if ``bent``, activations.

    A branch that ends in a norm or in a factor of its own is left to that.
    """
    index, through = branch.end, {"view", "dropout"} | ({"activation"} if bent else set())
    while index in branch.ops:
        op = wiring.ops[index]
        if op.kind in ("linear", "convolution", "transposed_convolution") or "out_proj_weight" in dict(op.parameters):
            return index
        if op.kind not in through or not op.inputs:
            return None
        index = op.inputs[0]
    return None


def _feeds(wiring: Wiring, index: int, kinds: tuple[str, ...], through: tuple[str, ...]) -> bool:
    """Whether an op of these kinds is reached with nothing but ``through`` between; a softmax at the end is a head."""
    waiting, seen = [index], {index}
    while waiting:
        for reader in wiring.readers(waiting.pop()):
            op = wiring.ops[reader]
            if op.kind in kinds and (op.kind != "softmax" or wiring.readers(reader)):
                return True
            if op.kind in through and reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    return False


def _follow(
    wiring: Wiring, layers: dict[int, Layer], roles: dict[int, Role], curves: dict[int, Nonlinearity]
) -> dict[int, Signal]:
    """What is known of each op's output; nothing behind merges, norms and whatever else is not a plain chain."""
    signals: dict[int, Signal] = {}
    chains = 0
    for op in wiring.ops:
        before = signals.get(op.inputs[0]) if op.inputs else None
        curve = curves.get(op.index)
        if op.index in layers:
            if roles[op.index] == "chain":
                layer = layers[op.index]
                chains += before is None
                chain, depth = (before.chain, before.depth) if before is not None else (chains, 0)
                signals[op.index] = Signal(chain, depth, None, (), layer)
        elif curve is not None and (start := signals.get(curve.source)) is not None and start.code is None:
            if curve.alone and not set(start.way) & _AVERAGES:
                grown = 0 if curve.straight else 1
                signals[op.index] = Signal(start.chain, start.depth + grown, op.index, (), start.layer)
        elif before is not None and _passes(op):
            signals[op.index] = replace(before, way=(*before.way, op.name))
    return signals


def _passes(op: Op) -> bool:
    return len(op.inputs) == 1 and (op.kind == "dropout" or op.name in _SAME | _TURNS | _FOLDS | _AVERAGES)


def _codes(
    wiring: Wiring,
    curves: list[Nonlinearity],
    signals: dict[int, Signal],
    layers: dict[int, Layer],
    roles: dict[int, Role],
    lengths: Counter[int],
    method: Method,
) -> tuple[dict[int, Code], dict[int, Code]]:
    """Code by nonlinearity, and by the layer in front of it."""
    codes: dict[int, Code] = {}
    coded: dict[int, Code] = {}
    known: dict[tuple[object, ...], Code] = {}
    for curve in curves:
        signal = signals.get(curve.exit)
        if signal is None:
            continue
        if method != "operating point" and _mirrors(wiring, curve, signal, signals, layers, roles):
            code = Code(slope=curve.mirror)
        else:
            given = (lengths[signal.chain], signal.layer.bias is None, _knows_mean(signal.layer, signals, codes))
            key = (*curve.key, *given)
            if key not in known:
                known[key] = _code(curve, *given)
            code = known[key]
        codes[curve.exit] = coded[signal.layer.index] = code
    return codes, coded


def _code(curve: Nonlinearity, depth: int, biasless: bool, knows_mean: bool) -> Code:
    """An operating point that the layer in front can reach.

    Without a bias, the shift has to come out of the input's mean, which feeds back: only activations that have no
    operating point at 0, such as ReLU, get one that way.
    """
    if not biasless:
        return Code(*operating_point(curve.phi, depth))
    try:
        return Code(*operating_point(curve.phi, depth, beta=0.0))
    except ValueError:
        return Code(*operating_point(curve.phi, depth)) if knows_mean else Code(*standardized(curve.phi, 1.0, 0.0))


def _knows_mean(layer: Layer, signals: dict[int, Signal], codes: dict[int, Code]) -> bool:
    """Whether a layer's input has a known mean that weights can make a shift of."""
    before = signals.get(layer.source)
    code = codes.get(before.code) if before is not None and before.code is not None else None
    whole = layer.layout.groups == 1 and layer.layout.inputs > 1
    return code is not None and code.mean != 0 and code.slope is None and whole


def _mirrors(
    wiring: Wiring,
    curve: Nonlinearity,
    signal: Signal,
    signals: dict[int, Signal],
    layers: dict[int, Layer],
    roles: dict[int, Role],
) -> bool:
    """Whether the units in front can be paired, and all that reads them can tell the pairs."""
    if curve.mirror is None or not signal.layer.pairs_outputs:
        return False
    waiting = list(wiring.readers(curve.exit))
    while waiting:
        index = waiting.pop()
        if index in layers:
            layer = layers[index]
            if roles[index] != "chain" or not layer.pairs_inputs(signal.layer, signals[layer.source].way):
                return False
        elif index in signals and signals[index].code == curve.exit and wiring.readers(index):
            waiting.extend(wiring.readers(index))
        else:
            return False
    return True
