"""The whole loss along one direction of all weights: the check that others do, with what it cannot see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unvanish.torch.gradcheck.directional import BackwardError, Probe
from unvanish.torch.gradcheck.inspect import Report
from unvanish.torch.gradcheck.results import Failure, LossCheck
from unvanish.torch.gradcheck.units import Unit
from unvanish.torch.gradcheck.verdict import verdict
from unvanish.torch.probe.scopes import clean


def whole_loss(model: nn.Module, run: Callable[[], Any], report: Report) -> LossCheck | None:
    """One directional derivative of the loss; None, with the reason in the report, where it could not be taken."""
    parameters = tuple((clean(name), p, False) for name, p in model.named_parameters() if p.requires_grad)
    unit = Unit("loss", "whole loss", 1, lambda _: run(), {}, parameters, tuple(model.modules()))
    try:
        probe = Probe(unit, torch.Generator().manual_seed(1))
        found = verdict(probe, range(len(probe.leaves)))
    except BackwardError as error:
        report.skip(unit, f"its backward raises in float64: {error.__cause__}")
        return None
    except Exception as error:
        report.skip(unit, f"it does not run in float64: {type(error).__name__}: {error}")
        return None
    best = found.best
    shares = zip(probe.leaves, best.shares, strict=True)
    blind = tuple(leaf.name for leaf, share in shares if share < best.allowed)
    if found.right is False and not report.failures and not report.cut:
        report.fail(Failure("loss", "whole loss", "", "the loss's derivative is wrong, though every module's is right"))
    told = found.right is not None
    return LossCheck(best.error if told else None, best.allowed, blind, found.right is True)
