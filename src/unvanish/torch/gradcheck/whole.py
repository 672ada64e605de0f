"""The whole loss along one direction of all weights: the check that others do, with what it cannot see."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from unvanish.torch.gradcheck.directional import BackwardError, Probe
from unvanish.torch.gradcheck.inspect import said, tell
from unvanish.torch.gradcheck.report import Report
from unvanish.torch.gradcheck.results import Failure, LossCheck
from unvanish.torch.gradcheck.stream import Draws
from unvanish.torch.gradcheck.units import ForwardError, Supply, Unit, Which
from unvanish.torch.gradcheck.verdict import Verdict, judge, verdict
from unvanish.torch.probe.scopes import clean

_STEPS = (1e-6, 1e-7, 1e-5)
_KINKED = (1e-7, 1e-6, 1e-5)  # where a module has many kinks: a single number cannot leave out those behind it
_MANY = 1e-3  # a share that rounding alone does not make


def whole_loss(model: nn.Module, run: Callable[[Supply], Any], report: Report) -> LossCheck | None:
    """One directional derivative of the loss; None, with the reason in the report, where it could not be taken."""
    parameters = tuple((clean(name), p, False) for name, p in model.named_parameters() if p.requires_grad)
    unit = Unit("", "whole loss", Which(), run, {}, parameters=parameters, modules=tuple(model.modules()))
    try:
        probe = Probe(unit, Draws(report.stream))
        if not all(bool(y.isfinite().all()) for y in probe.values):
            return _not_finite(unit, report)
        kinked = any(check.kink_share > _MANY for check in report.modules.values())
        found = _found(probe, _KINKED if kinked else _STEPS, bool(report.failures))
        if found.right is False and not report.failures and not report.cut:
            tell(unit, probe, judge(probe), report)
    except (ForwardError, BackwardError) as error:
        report.skip(unit, f"it could not be checked in float64: {said(error)}")
        return None
    best = found.best
    shares = zip(probe.leaves, best.shares, strict=True)
    blind = tuple(leaf.name for leaf, share in shares if share < best.allowed)
    return LossCheck(None if found.right is None else best.error, best.allowed, blind, found.right is True)


def _found(probe: Probe, steps: Sequence[float], wrong: bool) -> Verdict:
    """Where it is known already that something is wrong, one measurement tells whether it shows here."""
    every = range(len(probe.leaves))
    if not wrong:
        return verdict(probe, every, steps)
    measure = probe.measure(steps[0], every, briefly=True)
    return Verdict(True if measure.passed else False if measure.failed else None, (measure,))


def _not_finite(unit: Unit, report: Report) -> LossCheck:
    if not report.failures:
        report.fail(Failure(unit.module, unit.kind, "output", "the loss is not finite"))
    return LossCheck(None, math.inf, (), False)
