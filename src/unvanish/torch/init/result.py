"""What an initialisation did, and whether signal and gradient now get through."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

LARGEST_LOG_GAIN = math.log(30)
LEAST_SEPARATION = 0.05
LEAST_RANK = 3.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """Signs of life at step 0, between the first and the last place on the trunk: activations and residual sums.

    A recurrent layer's places are its first and its last step; of several such pairs a network shows its worst.

    Attributes:
        forward: ln of the last place's standard deviation over the batch, over the first one's; over time, ln of how
            much of the first input the last output remembers, in units of a fair share of all steps.
        backward: ln of the root-mean-square singular value of the Jacobian between the two: what becomes of gradients;
            over time, as a ratio to that between the last two steps.
        separation: standard deviation over the batch divided by root-mean-square, at the last place.
        rank: stable rank of the Jacobian between the two, the number of directions that get through; not over time.
        over: where it was measured, such as "over 100 steps of lstm"; "" for the trunk.

    None is "not observed", -inf "exactly zero".
    """

    forward: float | None = None
    backward: float | None = None
    separation: float | None = None
    rank: float | None = None
    over: str = ""

    @property
    def observed(self) -> bool:
        """Whether any sign that can fail was observed."""
        return any(sign is not None for sign in (self.forward, self.backward, self.separation))

    def failures(self) -> tuple[str, ...]:
        """What is wrong, in sentences."""
        found = []
        for way, gain in (("signal forward", self.forward), ("gradient backward", self.backward)):
            if gain is not None and not abs(gain) < LARGEST_LOG_GAIN:
                verb = "grows" if gain > 0 else "shrinks" if gain < 0 else "is not finite"
                found.append(f"the {way} {verb}: ln gain {gain:+.1f}, expected within ±{LARGEST_LOG_GAIN:.1f}")
        if self.separation is not None and not self.separation > LEAST_SEPARATION:
            found.append(
                f"samples look alike at the end: separation {self.separation:.2g}, expected above {LEAST_SEPARATION}"
            )
        return tuple(f"{self.over}, {text}" if self.over else text for text in found)

    def warnings(self) -> tuple[str, ...]:
        """What is not good, but not certainly bad."""
        if self.rank is None or self.rank >= LEAST_RANK:
            return ()
        return (f"few directions get through: stable rank {self.rank:.1f}, better at least {LEAST_RANK:.0f}",)

    def __str__(self) -> str:
        """One line."""
        signs = (
            ("forward ln gain", self.forward, "+.2f"),
            ("backward ln gain", self.backward, "+.2f"),
            ("separation", self.separation, ".2g"),
            ("stable rank", self.rank, ".1f"),
        )
        text = ", ".join(f"{name} {format(v, spec) if v is not None else 'not observed'}" for name, v, spec in signs)
        return f"{self.over}: {text}" if self.over else text


@dataclass(frozen=True, slots=True)
class Action:
    """What was done to one parameter: its name, the method, and the numbers."""

    name: str
    method: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Initialization:
    """What :func:`initialize_` did, and the signs of life before and after.

    Attributes:
        actions: one per weight that was set, in execution order.
        untouched: (name, reason) for trainable weights that were left as they were.
        depths: activations in a row in each plain chain, longest first.
        before: vital signs of the model as it came.
        after: vital signs now.
    """

    actions: tuple[Action, ...]
    untouched: tuple[tuple[str, str], ...]
    depths: tuple[int, ...]
    before: Vitals
    after: Vitals

    @property
    def ok(self) -> bool | None:
        """Whether no vital sign that was observed fails; None where none could be observed.

        A low stable rank warns, and does not fail.
        """
        return None if not self.after.observed else not self.after.failures()

    def __str__(self) -> str:
        """What was done, method by method, and the vital signs."""
        counts = Counter(action.method for action in self.actions)
        lines = [
            f"initialised {len(self.actions)} weights: " + ", ".join(f"{n} {method}" for method, n in counts.items()),
            "activations in a row: " + (", ".join(map(str, self.depths[:6])) or "none outside residual branches"),
            f"before: {self.before}",
            f"after:  {self.after}",
        ]
        lines += [f"not touched: {name} ({reason})" for name, reason in self.untouched[:8]]
        if len(self.untouched) > 8:
            lines.append(f"not touched: {len(self.untouched) - 8} more")
        lines += [f"warning: {text}" for text in self.after.warnings()]
        lines += [f"NOT OK: {text}" for text in self.after.failures()] or [self._verdict()]
        return "\n".join(lines)

    def _verdict(self) -> str:
        if not self.after.observed:
            return "not verified: no vital sign could be observed here"
        seen = {
            "the signal forward": self.after.forward,
            "the gradient backward": self.after.backward,
            "the samples' separation": self.after.separation,
        }
        missing = [name for name, sign in seen.items() if sign is None]
        return f"ok, except that {' and '.join(missing)} could not be observed" if missing else "ok"
