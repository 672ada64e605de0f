"""What each layer will be initialised to, decided from the wiring alone, before any weight changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from unvanish.theory import operating_point, standardized
from unvanish.torch.init.layers import Layer
from unvanish.torch.init.nonlinearities import Nonlinearity
from unvanish.torch.init.roles import Role
from unvanish.torch.init.signals import Reading, Signal, read
from unvanish.torch.init.ways import AVERAGES
from unvanish.torch.wiring import Wiring

Method = Literal["auto", "operating point", "mirrored"]
_MIRRORED_FROM = 10  # activations in a row; pairs halve the width at the start, which costs shallow nets accuracy


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
    mean_slope: float = 1.0  # of the activation, over the inputs it gets

    @property
    def offset(self) -> float:
        """Mean of what comes out, in its standard deviations; a mirrored pair's two means cancel."""
        return abs(self.mean) * self.gamma


@dataclass(frozen=True, slots=True)
class Step:
    """One layer's part of the plan.

    Attributes:
        layer: where its weight is.
        role: its part in the network.
        source: code of the input, None where it has to be measured.
        measured: the input's length has to be measured, though its code is known (averages shorten it).
        target: code of the activation behind.
        maker: the layer that made the input's signal, None where that is not known.
    """

    layer: Layer
    role: Role
    source: Code | None
    measured: bool
    target: Code
    maker: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do.

    Attributes:
        steps: by op index.
        depths: activations in every chain, longest first.
        codes: of every activation that a layer in a chain is set for.
        ends: ops that end residual branches and start at zero.
        bent: ops that end residual branches but for an activation.
        small: factor for these, one over the number of branches.
    """

    steps: dict[int, Step]
    depths: tuple[int, ...]
    codes: tuple[Code, ...]
    ends: frozenset[int]
    bent: frozenset[int]
    small: float


def make_plan(wiring: Wiring, model: nn.Module, kept: set[int], method: Method) -> Plan:
    """Decide roles, chains and codes."""
    reading = read(wiring, model, kept)
    codes, coded = _codes(reading, method)
    steps = {}
    for index, layer in reading.layers.items():
        before = reading.signals.get(layer.source)
        steps[index] = Step(
            layer,
            reading.roles.of[index],
            source=None if before is None else Code() if before.code is None else codes.get(before.code),
            measured=before is not None and bool(AVERAGES.intersection(before.way)),
            target=coded.get(index, Code()),
            maker=None if before is None else before.layer.index,
        )
    depths = tuple(sorted((n for n in reading.lengths.values() if n), reverse=True))
    roles = reading.roles
    return Plan(_at_first_use(steps), depths, tuple(coded.values()), roles.ends, roles.bent, 1 / max(1, roles.branches))


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


def _codes(reading: Reading, method: Method) -> tuple[dict[int, Code], dict[int, Code]]:
    """Code by nonlinearity, and by the layer in front of it."""
    codes: dict[int, Code] = {}
    coded: dict[int, Code] = {}
    known: dict[tuple[bytes, int, bool, bool], Code | None] = {}
    for curve in reading.curves:
        signal = reading.signals.get(curve.exit)
        if signal is None or signal.layer.index in coded:  # two nonlinearities of one layer: the first one counts
            continue
        deep = reading.lengths[signal.chain] >= _MIRRORED_FROM or method == "mirrored"
        if method != "operating point" and deep and _mirrors(curve, signal, reading):
            code: Code | None = _pair(curve)
        else:
            layer = signal.layer
            given = (reading.lengths[signal.chain], layer.bias is None, _knows_mean(layer, reading, codes))
            key = (curve.key, *given)
            if key not in known:
                known[key] = _code(curve, *given)
            code = known[key]
        if code is not None:
            codes[curve.exit] = coded[signal.layer.index] = code
    return codes, coded


def _pair(curve: Nonlinearity) -> Code:
    assert curve.mirror is not None, "only what can be paired is"
    return Code(slope=curve.mirror, mean_slope=abs(curve.mirror) / 2)


def _code(curve: Nonlinearity, depth: int, biasless: bool, knows_mean: bool) -> Code | None:
    """An operating point that the layer in front can reach; None where the activation has none, such as a step.

    Without a bias, the shift has to come out of the input's mean, which feeds back: only activations that have no
    operating point at 0, such as ReLU, get one that way.
    """
    for beta in (0.0, None) if biasless and knows_mean else (0.0,) if biasless else (None,):
        try:
            point = operating_point(curve.phi, depth, beta=beta)
        except ValueError:
            continue
        return Code(*point, mean_slope=curve.mean_slope(point.alpha, point.beta))
    point = standardized(curve.phi, 1.0, 0.0)
    return Code(*point) if point.gamma < math.inf else None


def _knows_mean(layer: Layer, reading: Reading, codes: dict[int, Code]) -> bool:
    """Whether a layer's input has a known mean that weights can make a shift of."""
    before = reading.signals.get(layer.source)
    code = codes.get(before.code) if before is not None and before.code is not None else None
    whole = layer.layout.groups == 1 and layer.layout.inputs > 1
    return code is not None and code.mean != 0 and code.slope is None and whole


def _mirrors(curve: Nonlinearity, signal: Signal, reading: Reading) -> bool:
    """Whether the units in front can be paired, and all that reads them can tell the pairs."""
    if curve.mirror is None or not signal.layer.pairs_outputs:
        return False
    wiring, signals = reading.wiring, reading.signals
    waiting = list(wiring.readers(curve.exit))
    while waiting:
        index = waiting.pop()
        if index in reading.layers:
            layer = reading.layers[index]
            way = signals[layer.source].way
            if reading.roles.of[index] != "chain" or not layer.pairs_inputs(signal.layer, way):
                return False
        elif index in signals and signals[index].code == curve.exit and wiring.readers(index):
            waiting.extend(wiring.readers(index))
        else:
            return False
    return True
