"""Where a NaN came from: blame is for the place where it really came in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unvanish.torch.gradcheck.directional import Probe
from unvanish.torch.gradcheck.report import Given, Report
from unvanish.torch.gradcheck.results import Failure
from unvanish.torch.gradcheck.stream import Draws
from unvanish.torch.gradcheck.units import ForwardError, Unit
from unvanish.torch.gradcheck.values import Held, real


def has_nan(values: Tensor) -> bool:
    """The sum of finite numbers is no NaN: most tensors are read once."""
    plain = values.layout is torch.strided and not values.is_nested
    return plain and math.isnan(float(real(values).sum())) and bool(values.isnan().any())


def blame(unit: Unit, probe: Probe, report: Report) -> bool:
    """A NaN came out of this piece: from what it was given, from its own numbers, or from what it does with them."""
    ill = [held for _, held in unit.entering if has_nan(held.data)]
    given = [held for held in ill if held in report.given]
    computed = [held for held in ill if held not in report.given]
    for guilty, healed in ((), computed), (given, ill):
        if healed and _heals(unit, healed, report):
            for held in guilty:
                _fail(report, report.given[held], held.data)
            report.skip(unit, "its input is NaN already")
            return True
    own = [(name, values) for name, values in _own(unit, probe) if has_nan(values)]
    for name, values in own:
        _fail(report, Given(unit.module, unit.kind, name), values)
    if not own:
        report.fail(Failure(unit.module, unit.kind, "output", f"NaN comes out{unit.which}, and none went in"))
    return False


def _heals(unit: Unit, which: Sequence[Held], report: Report) -> bool:
    """Does no NaN come out when none of these is one?"""
    try:
        return not any(map(has_nan, Probe(unit.without_nan(which), Draws(report.stream)).values))
    except ForwardError:
        return True


def _fail(report: Report, place: Given, values: Tensor) -> None:
    index = tuple(values.isnan().nonzero()[0].tolist())
    report.fail(Failure(place.module, place.kind, place.tensor, "NaN goes in", index))


def _own(unit: Unit, probe: Probe) -> Iterator[tuple[str, Tensor]]:
    """Parameters, frozen ones as well, and buffers."""
    for leaf in probe.leaves:
        if leaf.parameter is not None:
            yield leaf.name, leaf.base
    names = (
        {module: f"{name}." if name else "" for name, module in unit.modules[0].named_modules()} if unit.modules else {}
    )
    for module in unit.modules:
        for name, values in (*module._parameters.items(), *module._buffers.items()):
            if values is not None and not values.requires_grad:
                yield f"{names[module]}{name}", values.detach()
