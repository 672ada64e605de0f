"""What a mismatch is, and what is told of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from unvanish.types import Flow


@dataclass(frozen=True, slots=True)
class Fault:
    """How sure, what is wrong, what to do; where, beside the loss; and the source, where the rule's own does not say it."""

    confidence: float
    message: str
    remedy: str
    place: str | None = None
    source: str | None = None


class AbstractMismatch(ABC):
    """One kind of mismatch: when it holds, its thresholds as fields, and Flows on which it must be silent or speak."""

    @abstractmethod
    def faults(self, flow: Flow) -> Iterator[Fault]:
        """What of this kind is wrong, the surest first."""

    @classmethod
    @abstractmethod
    def healthy(cls) -> tuple[Flow, ...]:
        """Flows on which it must be silent."""

    @classmethod
    @abstractmethod
    def sick(cls) -> tuple[Flow, ...]:
        """Flows on which it must speak."""
