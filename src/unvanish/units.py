"""What a rule is, and how rules are found: by folder, and by the entry-point group ``unvanish.units``.

A new rule is one new file in ``unvanish/rules``; the generated tests, ``explain`` and the command line pick it up.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from functools import cache
from importlib.metadata import entry_points
from typing import ClassVar

from unvanish.types import Finding, Flow
from unvanish.vocabulary import Cause


class AbstractRule(ABC):
    """One cause: when it holds (``check``), its thresholds as dataclass fields, its source, its own cases.

    Subclasses are frozen dataclasses and final.  The class docstring is the page ``unvanish explain`` prints: what
    the cause means, how it is recognised, what cures it.  ``healthy`` and ``sick`` are Flows on which ``check``
    must return nothing, or a finding of this cause; the generated tests run them.
    """

    cause: ClassVar[Cause]
    title: ClassVar[str]
    source: ClassVar[str]
    remedies: ClassVar[tuple[str, ...]]

    @abstractmethod
    def check(self, flow: Flow) -> Finding | None:
        """Return the finding if this cause holds on ``flow``, else None."""

    @classmethod
    @abstractmethod
    def healthy(cls) -> tuple[Flow, ...]:
        """Flows on which this rule must stay silent."""

    @classmethod
    @abstractmethod
    def sick(cls) -> tuple[Flow, ...]:
        """Flows on which this rule must speak."""


@cache
def rules() -> tuple[AbstractRule, ...]:
    """All rules with their default thresholds, ours and installed ones, sorted by cause."""
    package = importlib.import_module("unvanish.rules")
    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"unvanish.rules.{name}") for name in names]
    found = {kind for module in modules for kind in vars(module).values() if _is_rule(kind)}
    found |= {kind for point in entry_points(group="unvanish.units") if _is_rule(kind := point.load())}
    return tuple(sorted((kind() for kind in found), key=lambda rule: rule.cause))


def _is_rule(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, AbstractRule) and kind is not AbstractRule
