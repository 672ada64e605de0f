"""What a cause means, how it is recognised, what cures it and who says so: the rule's own words."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from unvanish.units import AbstractRule


def index(rules: Sequence[AbstractRule]) -> str:
    """All causes, one line each."""
    width = max((len(rule.cause) for rule in rules), default=0)
    lines = [f"  {rule.cause:<{width}}  {rule.title}" for rule in rules]
    return "\n".join(["The causes unvanish tells apart:", "", *lines, "", "More about one: unvanish explain CAUSE"])


def page(rule: AbstractRule) -> str:
    """One cause in full."""
    parts = [f"{rule.cause}: {rule.title}", inspect.cleandoc(type(rule).__doc__ or "")]
    # AbstractRule is not a dataclass itself, every rule is: the type checker cannot know.
    own: tuple[Field[Any], ...] = fields(rule)  # type: ignore[arg-type]
    if own:
        parts.append(_list("Thresholds", [f"{field.name} = {getattr(rule, field.name)}" for field in own]))
    parts.append(_list("What to do", [f"{rank}. {remedy}" for rank, remedy in enumerate(rule.remedies, start=1)]))
    return "\n\n".join([*parts, f"Source: {rule.source}"])


def _list(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)])
