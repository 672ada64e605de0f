"""What a gradient check found: plain frozen values, and how they read."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ModuleCheck:
    """One module (its own computation, without that of the modules it calls), checked by itself.

    Attributes:
        module: its path; ``""`` is the model itself, ``"loss"`` what is computed outside of the model.
        kind: its class, or the class of a custom ``torch.autograd.Function`` that it calls.
        relative_error: largest difference between analytic and numeric directional derivative, in units of its scale;
            for small layers of PyTorch's own, which are measured many at once, of all together.
        tolerance: the relative error up to which they count as equal; larger where rounding or kinks blur the numbers.
        kink_share: share of output entries left out because they stand at a kink or a jump (0 to 1).
        calls: how often the program called it; at most three of the calls are checked.
    """

    module: str
    kind: str
    relative_error: float
    tolerance: float
    kink_share: float
    calls: int
    ok: bool


@dataclass(frozen=True)
class Failure:
    """One tensor whose derivative is wrong, with its worst entry.

    ``analytic`` (backward) and ``numeric`` (differences) are derivatives of the module's outputs along one random
    direction of length one, by this entry.  They and ``index`` are None where ``problem`` is no wrong derivative.
    Of a complex tensor the last index is 0 for the real and 1 for the imaginary part.
    """

    module: str
    kind: str
    tensor: str
    problem: str
    index: tuple[int, ...] | None = None
    analytic: float | None = None
    numeric: float | None = None
    relative_error: float = math.nan

    @property
    def where(self) -> str:
        """``layers.3.weight[12, 7]``; for what is no parameter ``layers.3 (Sigmoid) input[0, 2]``."""
        index = "" if self.index is None else f"[{', '.join(map(str, self.index))}]"
        parameter = self.tensor and not self.tensor.startswith(("input", "output"))
        if parameter:
            return f"{f'{self.module}.' if self.module else ''}{self.tensor}{index}"
        return f"{shown(self.module)} ({self.kind}) {self.tensor}{index}".rstrip()

    def __str__(self) -> str:
        if self.analytic is None or self.numeric is None:
            return f"{self.where}: {self.problem}"
        ratio = f"{self.analytic / self.numeric:.6g}" if self.numeric else "infinite"
        return (
            f"{self.where}: {self.problem}: backward gives {self.analytic:.6g}, "
            f"differences give {self.numeric:.6g} (ratio {ratio})"
        )


@dataclass(frozen=True)
class Skipped:
    """What was not checked, or could not be judged, and why."""

    module: str
    kind: str
    reason: str
    trivial: bool = False

    def __str__(self) -> str:
        return f"{shown(self.module)} ({self.kind}): {self.reason}"


@dataclass(frozen=True)
class LossCheck:
    """The whole loss along one direction of all weights together: weak where gradients vanish.

    ``blind`` names the parameters whose share of the directional derivative is below the tolerance: a wrong derivative
    there would not have been seen by this check.  ``relative_error`` is None where the loss could not be measured.
    """

    relative_error: float | None
    tolerance: float
    blind: tuple[str, ...]
    ok: bool

    def __str__(self) -> str:
        if self.relative_error is None:
            return "whole loss: could not be measured"
        verdict = "agrees" if self.ok else "differs"
        weak = (
            f"; blind for {_count(len(self.blind), 'parameter')} whose gradient is too small to count"
            if self.blind
            else ""
        )
        return f"whole loss: {verdict} (relative error {self.relative_error:.1e}, limit {self.tolerance:.0e}{weak})"


@dataclass(frozen=True)
class GradientCheck:
    """The result of ``gradcheck``: print it, or read its parts.

    ``checked``: some derivative by a parameter (of ``gradcheck_function``: by an input) could be compared at all.
    """

    modules: tuple[ModuleCheck, ...]
    failures: tuple[Failure, ...]
    skipped: tuple[Skipped, ...]
    loss: LossCheck | None = None
    checked: bool = True

    @property
    def ok(self) -> bool:
        """Something was checked, and no wrong derivative and no NaN was found."""
        return self.checked and not self.failures

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [self._headline(), *(f"  {failure}" for failure in self.failures[:_MOST_LINES])]
        lines += _more(len(self.failures), "failures")
        if self.failures:
            lines.append("  What to do: " + _advice(self.failures))
        lines += [f"  {self.loss}"] if self.loss is not None else []
        told = [one for one in self.skipped if not (one.trivial and self.checked)]
        lines += [f"  not checked: {one}" for one in told[:_MOST_LINES]] + _more(len(told), "skipped")
        return "\n".join(lines)

    def _headline(self) -> str:
        checked = f"{_count(len(self.modules), 'module')} checked, each by itself in float64"
        if self.ok:
            worst = max((m.relative_error for m in self.modules), default=0.0)
            return f"unvanish gradcheck: no wrong derivative ({checked}; largest relative error {worst:.1e})"
        if wrong := sum(not module.ok for module in self.modules):
            return f"unvanish gradcheck: WRONG in {wrong} of {checked}"
        return f"unvanish gradcheck: {'FAILED' if self.failures else 'NOTHING WAS COMPARED'} ({checked})"


_MOST_LINES = 6


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def named_type(value: object) -> str:
    """The type of what was given, with its article."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[:1].lower() in set('aeiou') else 'a'} {name}"


def shown(module: str) -> str:
    """A module's path as it is printed: the model itself has none."""
    return module or "the model"


def _more(count: int, what: str) -> list[str]:
    return [f"  and {count - _MOST_LINES} more in .{what}"] if count > _MOST_LINES else []


def _advice(failures: tuple[Failure, ...]) -> str:
    first = failures[0]
    if first.analytic is None:
        return f"mend {first.where} first: what follows it may only be a consequence."
    return (
        f"mend the backward of {shown(first.module)} ({first.kind}), or what cuts or rescales its gradient "
        "(a hook, .data, a straight-through estimator; if that is meant, this is no fault)."
    )
