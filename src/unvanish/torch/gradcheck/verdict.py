"""From measurements to a verdict on one piece, and on each of its tensors where it fails."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from unvanish.torch.gradcheck.directional import Probe
from unvanish.torch.gradcheck.linear import leave_out_bent
from unvanish.torch.gradcheck.measure import Measure
from unvanish.torch.gradcheck.noise import is_rounding, listening

# Steps in turn: the middle one is right for smooth pieces; a smaller one meets fewer kinks, a larger one less rounding.
STEPS = (1e-5, 1e-6, 1e-4, 1e-5, 1e-7, 1e-6)
_STEADY_STEPS = (1e-4, 1e-5, 1e-6)
_FAILURES = (
    3  # one clear agreement is enough: chance gives it to an error e with probability 1e-7 / e; to fail takes more
)
_CLEAR_FAILURES = 2  # of those that chance gives with probability 1e-5 each, and nothing else can explain
_DIRECTIONS = 2  # to be sure of a failure
_HOPELESS = 100  # with rounding so many times the derivative no direction is lucky enough: the step is left out
_BLURRED = 1e-2  # with a limit up to here agreement still says something
_COUNTS = 1e-2  # so much of its scale a derivative must be to say by which factor it is off
SMALL = 1e-3  # a tensor with less of the derivative is looked at by itself


@dataclass(frozen=True, slots=True)
class Verdict:
    """``right`` is None where the differences are too blurred to tell."""

    right: bool | None
    measures: tuple[Measure, ...]

    @property
    def best(self) -> Measure:
        """The measurement that tells most: of those that failed, the worst."""
        if len(self.measures) == 1:
            return self.measures[0]
        if self.right is False:
            return max((m for m in self.measures if m.failed), key=lambda m: m.error)
        good = [m for m in self.measures if m.error <= m.allowed] or list(self.measures)
        passed = [m for m in good if m.passed]
        return max(passed, key=lambda m: m.error) if passed else min(good, key=lambda m: m.allowed)


@dataclass(slots=True)
class Judgement:
    """The verdict on a piece; the tensors whose derivative is wrong, cut off, or could not be told."""

    whole: Verdict
    wrong: list[int] = field(default_factory=list)
    scaled: list[int] = field(default_factory=list)  # those of the wrong ones that are off by one factor
    cut: list[int] = field(default_factory=list)
    untold: list[int] = field(default_factory=list)

    @property
    def nowhere_smooth(self) -> bool:
        """Is it unknown because all outputs are at kinks or jumps?"""
        return self.whole.right is None and not self.wrong and all(m.kinks == 1 for m in self.whole.measures)


def verdict(probe: Probe, chosen: Sequence[int], steps: Sequence[float] = STEPS) -> Verdict:
    """Measure until it is clear; what seems wrong without entries that are not linear, and with the noise known."""
    found = _verdict(probe, chosen, steps)
    while found.right is False and not _by_one_factor(found.measures) and leave_out_bent(probe, chosen):
        found = _verdict(probe, chosen, steps)
    if found.right or _clear(found.measures, probe):
        return found
    with listening(probe, chosen) as loud:
        return _verdict(probe, chosen, steps) if loud or found.right is None else found


def _verdict(probe: Probe, chosen: Sequence[int], steps: Sequence[float]) -> Verdict:
    measures: list[Measure] = []
    noise = 0.0
    for step in steps:
        if noise > _HOPELESS * step:
            continue
        measures.append(probe.measure(step, chosen))
        noise = measures[-1].rounding * step
        if measures[-1].passed and not any(m.failed for m in measures[:-1]):
            return Verdict(True, tuple(measures))
        failures = [m for m in measures if m.failed]
        if len(failures) == (_CLEAR_FAILURES if _clear(failures, probe) else _FAILURES):
            break
    passed, failed = sum(m.passed for m in measures), sum(m.failed for m in measures)
    coarse = sum(m.error <= m.allowed <= _BLURRED for m in measures)
    if passed + coarse > failed:
        return Verdict(True, tuple(measures))
    sure = failed > 1 and (
        _clear(measures, probe) or any(_steady(probe.repeated(chosen, _STEADY_STEPS)) for _ in range(_DIRECTIONS))
    )
    return Verdict(False if sure else None, tuple(measures))


def _by_one_factor(measures: Sequence[Measure]) -> bool:
    """Is backward off by one and the same factor along all directions?  The true derivative is linear then."""
    first = measures[0]
    return len(measures) > 1 and all(m.clear and abs(m.analytic) >= _COUNTS and _alike(m, first) for m in measures)


def _alike(one: Measure, other: Measure) -> bool:
    apart = one.gap * other.analytic - other.gap * one.analytic
    return abs(apart) <= one.allowed * abs(other.analytic) + other.allowed * abs(one.analytic)


def _clear(measures: Sequence[Measure], probe: Probe) -> bool:
    """Can neither noise, which is small beside such a derivative, nor kinks explain these?"""
    return bool(measures) and all(m.clear and m.scale > probe.most_noise() for m in measures)


def _steady(measures: Iterable[Measure]) -> bool:
    """A wrong derivative is off by the same whatever the step; noise and kinks are not."""
    for one, other in itertools.pairwise(measures):
        larger = max(one.error, other.error)
        if one.failed and other.failed and (larger == math.inf or abs(one.gap - other.gap) <= 0.1 * larger):
            return True
    return False


def judge(probe: Probe) -> Judgement:
    """All tensors along one direction together; one by one where that fails, or says nothing of a tensor."""
    every = list(range(len(probe.leaves)))
    result = Judgement(_together(probe, every))
    _sort(probe, every, result.whole, result)
    return result


def _together(probe: Probe, every: list[int]) -> Verdict:
    """Tensors of tiny numbers move further from the start: else each costs many measurements of its own."""
    tiny = probe.tiny()
    if tiny:
        probe.widen(tiny)
        found = verdict(probe, every)
        if found.right:
            return found
        probe.unwiden(tiny)
    return verdict(probe, every)


def _sort(probe: Probe, chosen: list[int], found: Verdict, result: Judgement, widened: bool = False) -> None:
    """Halve a set of tensors that fails until single ones are left."""
    if len(chosen) > 1:
        middle = len(chosen) // 2
        parts = [[k] for k in _faint(found, chosen)] if found.right else [chosen[:middle], chosen[middle:]]
        for part in parts:
            _sort(probe, part, verdict(probe, part), result)
    elif not found.right and is_rounding(probe, chosen[0], max(m.scale for m in found.measures)):
        return  # rounding forward and rounding backward need not agree
    elif found.right is None and widened:
        result.untold += chosen
    elif found.right is None:
        probe.widen(chosen)
        _sort(probe, chosen, verdict(probe, chosen), result, widened=True)
    elif not found.right:
        unconnected = found.best.unconnected[chosen[0]] and not probe.unit.strict
        (result.cut if unconnected else result.wrong).extend(chosen)
        result.scaled += chosen if _by_one_factor(found.measures) else []


def _faint(whole: Verdict, chosen: list[int]) -> list[int]:
    """Tensors whose derivative is too small a part for a joint direction; what backward does not reach has none."""
    best = whole.best
    return [k for k in chosen if best.shares[k] < SMALL and not best.unconnected[k]]
