"""Names of layers as a person would write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

_INDEX = re.compile(r"\d+")


def places(names: Sequence[str]) -> str:
    """Names as a person would write them: all of a few, the ends of each long row of like names.

    >>> places(["net.0", "net.2"])
    'net.0, net.2'
    >>> places([f"net.{i}" for i in range(0, 46, 2)] + ["head"])
    'net.0 ... net.44 (23 layers), head'
    >>> places(["0", "2", "fc"])
    'layers 0, 2, fc'
    """
    rows: dict[str, list[str]] = {}
    for name in names:
        rows.setdefault(_INDEX.sub("#", name), []).append(name)
    if len(names) > 3 and len(rows) > 3:
        return _span(names)
    text = ", ".join(_row(row) for row in rows.values())
    # The children of a Sequential have numbers for names, and a number alone says nothing.
    return f"layer{'s' * (len(names) > 1)} {text}" if names and names[0].isdigit() else text


def _row(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else _span(names)


def _span(names: Sequence[str]) -> str:
    return f"{names[0]} ... {names[-1]} ({len(names)} {_noun(names[0])})"


def _noun(name: str) -> str:
    if name.endswith((".weight", ".bias")):
        return "parameters"
    return "operations" if ":" in name else "layers"
