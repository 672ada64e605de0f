"""What was found so far, piece after piece, until it is a GradientCheck."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from unvanish.torch.gradcheck.results import Failure, GradientCheck, LossCheck, ModuleCheck, Skipped
from unvanish.torch.gradcheck.stream import Stream
from unvanish.torch.gradcheck.units import Unit
from unvanish.torch.gradcheck.values import Held


@dataclass(frozen=True, slots=True)
class Given:
    """How a tensor is called in a failure."""

    module: str
    kind: str
    tensor: str


@dataclass(slots=True)
class Report:
    """What was found so far; several calls of one module become one line."""

    given: dict[Held, Given] = field(default_factory=dict)  # the tensors of the batch
    modules: dict[tuple[str, str], ModuleCheck] = field(default_factory=dict)
    failures: dict[tuple[str, str, str], Failure] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    cut: bool = False
    checked: bool = False  # some derivative by a parameter, or by an input of a function that is checked alone
    seen: set[int] = field(default_factory=set)  # ids of the parameters that some piece used
    stream: Stream = field(default_factory=Stream)  # of random numbers, for all pieces

    def skip(self, unit: Unit, reason: str, trivial: bool = False) -> None:
        """Not silently."""
        self.skipped.append(Skipped(unit.module, unit.kind, reason, trivial))

    def fail(self, failure: Failure) -> None:
        """The first failure of each tensor."""
        self.failures.setdefault((failure.module, failure.kind, failure.tensor), failure)

    def check(self, check: ModuleCheck) -> None:
        """The worst of several calls."""
        key = check.module, check.kind
        earlier = self.modules.setdefault(key, check)
        if earlier is not check:
            worst = max(earlier, check, key=lambda one: (not one.ok, one.relative_error))
            self.modules[key] = replace(worst, kink_share=max(earlier.kink_share, check.kink_share))

    def right(self, unit: Unit, check: ModuleCheck) -> None:
        """A piece that is right by all its tensors."""
        self.check(check)
        self.seen.update(id(parameter) for _, parameter, _ in unit.parameters)
        self.checked |= bool(unit.parameters)

    def result(self, loss: LossCheck | None) -> GradientCheck:
        """The finished report."""
        skipped = tuple(dict.fromkeys(self.skipped))
        return GradientCheck(tuple(self.modules.values()), tuple(self.failures.values()), skipped, loss, self.checked)
