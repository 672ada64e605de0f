"""PyTorch's own small layers, many in one measurement: of a small layer, measuring costs more than its own work.

The layers of a lot are moved at once, each along a direction of its own, and their outputs weigh alike.  Where the
whole agrees and every tensor has its part in it, each layer is right; where not, it is looked at by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from unvanish.torch.gradcheck.directional import BackwardError, Probe
from unvanish.torch.gradcheck.measure import Measure
from unvanish.torch.gradcheck.plain import SMOOTH
from unvanish.torch.gradcheck.report import Report
from unvanish.torch.gradcheck.results import ModuleCheck
from unvanish.torch.gradcheck.stream import Draws
from unvanish.torch.gradcheck.units import ForwardError, Supply, Unit, Which
from unvanish.torch.gradcheck.verdict import SMALL, STEPS

_LARGEST = 1 << 17  # numbers that enter a lot: what comes out stays in the cache, too


def right_together(units: Iterable[Unit], report: Report) -> dict[Unit, ModuleCheck]:
    """Those of the pieces that are right, each with its result; nothing is said of the others."""
    found: dict[Unit, ModuleCheck] = {}
    for lot in _lots(units):
        if len(lot) < 2:
            continue
        try:
            probe = Probe(_joined(lot), Draws(report.stream))
            measure = probe.measure(STEPS[0], range(len(probe.leaves))) if _fit(probe, lot) else None
        except (ForwardError, BackwardError):
            continue
        if measure is not None and measure.passed and not measure.kinks:
            found.update(_results(lot, probe, measure))
    return found


def _lots(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Small smooth layers that share no weight: it could not be moved for each of them by itself."""
    lot: list[Unit] = []
    size, taken = 0, set[nn.Parameter]()
    for unit in units:
        weights = {parameter for _, parameter, _ in unit.parameters}
        numbers = sum(p.numel() for p in weights) + sum(held.data.numel() for held in unit.inputs)
        if not unit.plain or type(unit.modules[0]) not in SMOOTH or not 0 < numbers <= _LARGEST // 2:
            continue
        if size + numbers > _LARGEST or not taken.isdisjoint(weights):
            yield lot
            lot, size, taken = [], 0, set[nn.Parameter]()
        lot.append(unit)
        size += numbers
        taken |= weights
    yield lot


def _joined(lot: Sequence[Unit]) -> Unit:
    """One piece made of all, which read what they read and feed nothing to one another."""

    def forward(supply: Supply) -> Any:
        return [unit.forward(supply) for unit in lot]

    return Unit(
        module="",
        kind="lot",
        which=Which(),
        forward=forward,
        inputs={held: name for unit in lot for held, name in unit.inputs.items()},
        entering=tuple(one for unit in lot for one in unit.entering),
        parameters=tuple(one for unit in lot for one in unit.parameters),
        modules=tuple(module for unit in lot for module in unit.modules),
        plain=True,
    )


def _fit(probe: Probe, lot: Sequence[Unit]) -> bool:
    """Has each layer one output that carries a gradient, and are all numbers of an ordinary size?"""
    return probe.finite and len(probe.tracked) == len(probe.outputs) == len(lot) and not probe.tiny()


def _results(lot: Sequence[Unit], probe: Probe, measure: Measure) -> Iterator[tuple[Unit, ModuleCheck]]:
    """Of the layers all of whose tensors have a part in the derivative that counts."""
    place: dict[object, int] = {leaf.held or leaf.parameter: k for k, leaf in enumerate(probe.leaves)}
    for unit in lot:
        own = [place[one] for one in (*unit.inputs, *(parameter for _, parameter, _ in unit.parameters))]
        if all(measure.shares[k] >= SMALL for k in own):
            calls = unit.which.calls
            yield unit, ModuleCheck(unit.module, unit.kind, measure.error, measure.allowed, 0.0, calls, ok=True)
