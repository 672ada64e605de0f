"""What diagnose returns: the verdict, to be read, printed and kept."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from unvanish import serialize
from unvanish.types import SCHEMA, Finding, Flow


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The verdict: findings, root cause first, and the Flow they were read from.

    ``learns`` says whether the network was seen to learn (None: not tried): without a finding and without learning
    the fault is one that no rule knows.
    """

    findings: tuple[Finding, ...]
    flow: Flow
    notes: tuple[str, ...] = ()
    learns: bool | None = None
    schema: int = SCHEMA

    @property
    def healthy(self) -> bool:
        """True when no rule found a fault."""
        return not self.findings

    def print(self) -> None:
        """Write the report to standard output."""
        sys.stdout.write(f"{self}\n")

    def to_json(self) -> str:
        """Strictly standard JSON; infinities and NaN are written as strings."""
        return serialize.to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Diagnosis:
        """The Diagnosis that ``to_json`` wrote; ValueError if the text is anything else."""
        return serialize.from_json(cls, text, schema=SCHEMA)

    def __str__(self) -> str:
        from unvanish.report.text import render  # only here: who draws no report need not wait for rich to load

        return render(self)
