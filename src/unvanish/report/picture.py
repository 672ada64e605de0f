"""The gradient through the network, input to loss, as bars of a terminal: it shows where the signal is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from unvanish.types import Flow

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ZERO, _BROKEN, _UNSEEN = "0", "?", " "
_LEGEND = {_ZERO: "0 = exactly zero", _BROKEN: "? = NaN or Inf", _UNSEEN: "gap = not observed"}

# A column is a height in decades, or the mark that stands for what is no height.
Column = float | str


def gradient_picture(flow: Flow, height: int = 8, width: int = 72) -> str:
    """Bars of log10 ||dL/d output|| of each site in forward order, input left and loss right.

    Exact zeros are drawn as 0, NaN and Inf as ?, and sites that were not observed as gaps.  Where there are more
    sites than columns, a column is the mean of its sites' decades, or 0 or ? if one of its sites is.
    """
    sites = sorted(flow.sites, key=lambda site: site.order)
    columns = _fit([_column(site.log_grad_out) for site in sites], max(1, width - 8))
    heights = [column for column in columns if isinstance(column, float)]
    if not heights:
        return _without_heights(columns)
    bottom, step, rows = _axis(min(heights), max(heights), height)
    lines = ["log10 of the gradient norm, input left, loss right"]
    for row in reversed(range(rows)):
        bars = "".join(_cell(column, bottom + row * step, step, row == 0) for column in columns)
        lines.append(f"{bottom + (row + 1) * step:+5d} ┤{bars}".rstrip())
    lines.append(f"{bottom:+5d} ┴{'─' * len(columns)}")
    lines.append(" " * 7 + _ends(sites[0].label, sites[-1].label, len(columns)))
    return "\n".join(lines + _legend(columns))


def _column(log: float | None) -> Column:
    if log is None:
        return _UNSEEN
    if log == -math.inf:
        return _ZERO
    return log / math.log(10) if math.isfinite(log) else _BROKEN


def _fit(columns: Sequence[Column], width: int) -> list[Column]:
    """As many columns as fit, neighbours merged; few sites get equally wide bars instead of one thin one each."""
    count = len(columns)
    if count <= width:
        repeat = min(6, width // count) if count else 1
        return [column for column in columns for _ in range(repeat)]
    edges = [i * count // width for i in range(width + 1)]
    return [_merge(columns[a:b]) for a, b in pairwise(edges)]


def _merge(columns: Sequence[Column]) -> Column:
    """What is wrong must not disappear in a mean: the marks win over heights, and a gap loses."""
    for mark in (_BROKEN, _ZERO):
        if mark in columns:
            return mark
    heights = [column for column in columns if isinstance(column, float)]
    return sum(heights) / len(heights) if heights else _UNSEEN


def _axis(lowest: float, highest: float, height: int) -> tuple[int, int, int]:
    """Bottom decade, decades a row, and number of rows, so that every label is a whole decade."""
    bottom = math.floor(lowest)
    span = max(1, math.ceil(highest) - bottom)
    step = math.ceil(span / max(1, height))
    return bottom, step, math.ceil(span / step)


def _cell(column: Column, floor: float, step: float, lowest: bool) -> str:
    if isinstance(column, str):
        return column if lowest else " "
    eighths = round(8 * (column - floor) / step)
    # The lowest row always shows something: a bar of no height would look like a gap.
    return _BLOCKS[min(8, max(1 if lowest else 0, eighths))]


def _ends(first: str, last: str, width: int) -> str:
    gap = width - len(first) - len(last)
    return f"{first}{' ' * gap}{last}" if gap > 1 else f"{first} ... {last}"


def _legend(columns: Sequence[Column]) -> list[str]:
    used = [text for mark, text in _LEGEND.items() if mark in columns]
    return [" " * 7 + "   ".join(used)] if used else []


def _without_heights(columns: Sequence[Column]) -> str:
    if _BROKEN in columns:
        return "The gradient is NaN or Inf at every site where it is not zero."
    if _ZERO in columns:
        return "The gradient is exactly zero at every observed site."
    return "No gradient was observed at any site."
