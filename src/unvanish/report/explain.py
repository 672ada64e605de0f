"""What a cause means, how it is recognised, what cures it and who says so: the rule's own words."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from unvanish.units import AbstractRule


def index(rules: Sequence[AbstractRule]) -> str:
    """All causes, one line each."""
    width = max((len(rule.cause) for rule in rules), default=0)
    lines = [f"  {rule.cause:<{width}}  {rule.title}" for rule in rules]
    return "\n".join(["The causes unvanish tells apart:", "", *lines, "", "More about one: unvanish explain CAUSE"])


def page(rule: AbstractRule, width: int | None = None) -> str:
    """One cause in full, as wide as the terminal or 100 columns."""
    columns = width or min(shutil.get_terminal_size().columns, 100)
    paragraphs = inspect.cleandoc(type(rule).__doc__ or "").split("\n\n")
    parts = [f"{rule.cause}: {rule.title}", *(_fill(" ".join(text.split()), columns) for text in paragraphs)]
    # AbstractRule is not a dataclass itself, every rule is: the type checker cannot know.
    own: tuple[Field[Any], ...] = fields(rule)  # type: ignore[arg-type]
    if own:
        values = [f"{field.name} = {_value(getattr(rule, field.name))}" for field in own]
        parts.append(_list("Thresholds", values, columns))
    remedies = [f"{rank}. {remedy}" for rank, remedy in enumerate(rule.remedies, start=1)]
    parts.append(_list("What to do", remedies, columns))
    return "\n\n".join([*parts, _fill(f"Source: {rule.source}", columns)])


def _list(title: str, lines: Sequence[str], width: int) -> str:
    return "\n".join([title, *(_fill(line, width, "  ", "     ") for line in lines)])


def _fill(text: str, width: int, first: str = "", other: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=other, break_on_hyphens=False)


def _value(threshold: object) -> str:
    return f"{threshold:.3g}" if isinstance(threshold, float) else str(threshold)
