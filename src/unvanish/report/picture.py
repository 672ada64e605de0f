"""The gradient through the network, input to loss, as bars of a terminal: it shows where the signal is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from unvanish import reading
from unvanish.types import Flow

TITLE = "log10 of the gradient norm, input left, loss right"
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
    columns, ends = _columns(flow, width)
    heights = [column for column in columns if isinstance(column, float)]
    if not heights:
        return _without_heights(columns)
    axis = _axis(min(heights), max(heights), height)
    return "\n".join([TITLE, *_bars(columns, ends, axis), *_legend(columns)])


def compare(before: Flow, after: Flow, height: int = 8, width: int = 72) -> str:
    """Two pictures side by side, with the same axis: what a cure did to the gradient."""
    half = (width - 3) // 2
    (left, left_ends), (right, right_ends) = _columns(before, half), _columns(after, half)
    heights = [column for column in (*left, *right) if isinstance(column, float)]
    if not heights:
        return f"before: {_without_heights(left)}\nafter: {_without_heights(right)}"
    axis = _axis(min(heights), max(heights), height)
    rows = zip(
        ["       before", *_bars(left, left_ends, axis)], ["       after", *_bars(right, right_ends, axis)], strict=True
    )
    lines = [f"{one:<{half}}   {other}".rstrip() for one, other in rows]
    return "\n".join(lines + _legend([*left, *right]))


def drawn(flow: Flow) -> bool:
    """Is there something to see at the layers: a difference of more than a decade, a zero or a broken number."""
    columns = [_column(site.log_grad_out) for site in reading.body(flow)]
    heights = [column for column in columns if isinstance(column, float)]
    marked = any(column in (_ZERO, _BROKEN) for column in columns)
    return marked or (len(heights) > 1 and max(heights) - min(heights) > 1.0)


def _columns(flow: Flow, width: int) -> tuple[list[Column], tuple[str, str]]:
    sites = sorted(flow.sites, key=lambda site: site.order)
    ends = (sites[0].label, sites[-1].label) if sites else ("", "")
    return _fit([_column(site.log_grad_out) for site in sites], max(1, width - 8)), ends


def _bars(columns: Sequence[Column], ends: tuple[str, str], axis: tuple[int, int, int]) -> list[str]:
    bottom, step, rows = axis
    lines = []
    for row in reversed(range(rows)):
        bars = "".join(_cell(column, bottom + row * step, step, row == 0) for column in columns)
        lines.append(f"{bottom + (row + 1) * step:+5d} ┤{bars}".rstrip())
    return [*lines, f"{bottom:+5d} ┴{'─' * len(columns)}", " " * 7 + _ends(*ends, len(columns))]


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
    span = max(1, math.ceil(highest - 1 / 16) - bottom)  # a row of invisible bars is no row
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
