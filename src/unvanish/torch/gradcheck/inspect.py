"""One piece after the other into a report: what is wrong, what is right, what could not be told and why."""

from __future__ import annotations

import torch

from unvanish.torch.gradcheck.conventions import is_one_function
from unvanish.torch.gradcheck.directional import BackwardError, Probe
from unvanish.torch.gradcheck.kinks import KINK_TOLERANCE, KinkCheck, check_kinks
from unvanish.torch.gradcheck.locate import worst_entry
from unvanish.torch.gradcheck.nan import blame, has_nan
from unvanish.torch.gradcheck.report import Report
from unvanish.torch.gradcheck.results import Failure, ModuleCheck
from unvanish.torch.gradcheck.stream import Draws
from unvanish.torch.gradcheck.units import ForwardError, Unit
from unvanish.torch.gradcheck.verdict import Judgement, judge

_WRONG = "wrong derivative"
_MOST_TENSORS = 8


def inspect(unit: Unit, report: Report) -> bool:
    """Check one piece; False where its derivative is wrong."""
    try:
        probe = Probe(unit, Draws(report.stream))
    except ForwardError as error:
        report.skip(unit, f"it does not run in float64: {said(error)}")
        return True
    report.seen.update(id(leaf.parameter) for leaf in probe.leaves if leaf.parameter is not None)
    if not probe.finite and any(map(has_nan, probe.values)):
        return blame(unit, probe, report)
    if not probe.judgeable:
        report.skip(unit, _nothing(probe), trivial=True)
        return True
    return _judged(unit, probe, report)


def _nothing(probe: Probe) -> str:
    """Why a piece has no derivative."""
    if not probe.outputs:
        return "it computes no numbers of its own"
    return "what it is differentiated by has no entries" if probe.leaves else "nothing in it needs a gradient"


def _judged(unit: Unit, probe: Probe, report: Report) -> bool:
    try:
        found = judge(probe)
        restless = found.whole.right is not True and _restless(probe)
        kinks = KinkCheck() if restless else _kinks(probe, found)
    except BackwardError as error:
        return _backward_raised(unit, error, report)
    except ForwardError as error:
        report.skip(unit, f"it could not be run again with inputs moved a little: {said(error)}")
        return True
    if restless:
        report.skip(unit, "it gives another output at each call, with the same inputs and random numbers")
    elif kinks.leaf is not None:
        _wrong_at_a_kink(unit, probe, kinks, report)
    else:
        tell(unit, probe, found, report, at_kinks=kinks.judged > 0)
    return restless or (kinks.leaf is None and not found.wrong)


def _kinks(probe: Probe, found: Judgement) -> KinkCheck:
    """Only a backward written by hand is called wrong there; that of PyTorch's own functions follows conventions."""
    by_hand = probe.unit.strict and not found.wrong and found.whole.best.kinks > 0 and is_one_function(probe.outputs)
    if by_hand:
        return check_kinks(probe)
    check = check_kinks(probe) if found.nowhere_smooth else KinkCheck()
    return check if check.leaf is None else KinkCheck()


def tell(unit: Unit, probe: Probe, found: Judgement, report: Report, at_kinks: bool = False) -> None:
    """Write down what was found. ``at_kinks``: where nothing is smooth, it is right on both sides."""
    best = found.whole.best
    if found.nowhere_smooth and at_kinks:
        report.check(ModuleCheck(unit.module, unit.kind, 0.0, KINK_TOLERANCE, best.kinks, unit.which.calls, ok=True))
        report.checked |= unit.alone or any(leaf.parameter is not None for leaf in probe.leaves)
        return
    if found.wrong or found.whole.right:
        report.check(
            ModuleCheck(unit.module, unit.kind, best.error, best.allowed, best.kinks, unit.which.calls, not found.wrong)
        )
    counting = {
        k for k, leaf in enumerate(probe.leaves) if unit.alone or (leaf.parameter is not None and not leaf.excused)
    }
    report.checked |= found.whole.right is not None and bool(counting - {*found.cut, *found.untold})
    for k in found.wrong[:_MOST_TENSORS]:
        report.fail(_failure(unit, probe, k, k in found.scaled))
    if best.adrift:
        report.cut = True
        report.skip(unit, "an output moves with its inputs but carries no gradient (a detach?)")
    for k in found.cut:
        report.cut = True
        name = probe.leaves[k].name
        report.skip(unit, f"no gradient flows back to {name}, on which its output depends (a detach?)")
    for leaf in probe.leaves:
        if leaf.excused:
            report.skip(unit, f"the gradient by {leaf.name} is no derivative: scale_grad_by_freq divides it")
    for k in found.untold:
        name = probe.leaves[k].name
        report.skip(unit, f"the derivative by {name} could not be told: too small beside rounding, or no smooth place")
    if not (found.whole.right or found.wrong or found.cut or found.untold):
        report.skip(unit, "tensor by tensor it is right, but not along a direction of all of them: undecided")


def _wrong_at_a_kink(unit: Unit, probe: Probe, kinks: KinkCheck, report: Report) -> None:
    assert kinks.leaf is not None, "something is wrong"
    analytic, numeric = kinks.analytic, kinks.nearest
    error = abs(analytic - numeric) / max(abs(analytic), abs(numeric))
    low, high = sorted(kinks.sides)
    along = "" if kinks.index is not None else " along a direction"
    problem = f"{_WRONG}{unit.which} at a kink, outside of the one-sided ones {low:.6g} and {high:.6g}{along}"
    name = probe.leaves[kinks.leaf].name
    report.check(ModuleCheck(unit.module, unit.kind, error, KINK_TOLERANCE, 1.0, unit.which.calls, ok=False))
    report.fail(Failure(unit.module, unit.kind, name, problem, kinks.index, analytic, numeric, error))


def _failure(unit: Unit, probe: Probe, k: int, scaled: bool) -> Failure:
    name = probe.leaves[k].name
    entry = worst_entry(probe, k, scaled)
    if entry is None:
        return Failure(unit.module, unit.kind, name, f"{_WRONG}{unit.which}")
    size = max(abs(entry.analytic), abs(entry.numeric))
    error = entry.gap / size if size else 0.0
    return Failure(
        unit.module, unit.kind, name, f"{_WRONG}{unit.which}", entry.index, entry.analytic, entry.numeric, error
    )


def _backward_raised(unit: Unit, error: BackwardError, report: Report) -> bool:
    if "heckpoint" in said(error):
        report.skip(unit, "a reentrant checkpoint cannot be differentiated in part: set use_reentrant=False")
        return True
    report.fail(Failure(unit.module, unit.kind, "input", f"backward raises{unit.which}, run in float64: {said(error)}"))
    return False


def _restless(probe: Probe) -> bool:
    with probe.unit.moving(probe.leaves, [None] * len(probe.leaves)) as at:
        again = at(0.0)
    same = len(again) == len(probe.values)
    return not same or not all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-12, atol=0, equal_nan=True)
        for one, other in zip(again, probe.values, strict=True)
    )


def said(error: ForwardError | BackwardError) -> str:
    """What the user's code raised, on one line."""
    text = " ".join(str(error.__cause__).split())
    return f"{type(error.__cause__).__name__}: {text[:160]}{'…' if len(text) > 160 else ''}"
