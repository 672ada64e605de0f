"""A diagnosis as text for a terminal, a pipe or a log file: it shows, it computes nothing."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from io import StringIO
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unvanish.report.picture import drawn, gradient_picture
from unvanish.report.places import places
from unvanish.types import Evidence, Finding, Flow

__all__ = ["gradient_picture", "places", "render"]

_VERDICTS = {
    True: "the network is healthy",
    False: "no known fault found, but the network was not seen to learn",
    None: "no fault found",  # and learning was not tried
}
_COLORS = {"high": "bold red", "medium": "bold yellow", "low": "bold cyan"}


class Verdict(Protocol):
    """What a report shows."""

    @property
    def findings(self) -> tuple[Finding, ...]: ...

    @property
    def flow(self) -> Flow: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def learns(self) -> bool | None: ...


def render(diagnosis: Verdict, width: int = 100, color: bool = False) -> str:
    """The whole report: a sentence for a healthy network, else root cause, proof, cure and what it explains."""
    if not diagnosis.findings:
        return _no_finding(diagnosis, width)
    root, *others = diagnosis.findings
    parts: list[RenderableType] = [_headline(root), "", _indented(root.message), _evidence(root), _remedies(root)]
    parts += [*_folded(root), *_others(others), *_picture(diagnosis.flow, width)]
    parts += [_indented(f"Note: {'; '.join(diagnosis.notes)}.", "dim")] if diagnosis.notes else []
    parts += _unobserved(diagnosis.flow.unobserved)
    parts += [_indented(f"Source: {root.source}", "dim"), f"  Learn more: unvanish explain {root.cause}"]
    return _draw(Group(*parts), width, color)


def _no_finding(diagnosis: Verdict, width: int) -> str:
    """Silence of the rules is health only where the network was seen to learn."""
    why = f" ({'; '.join(diagnosis.notes)})" if diagnosis.notes else ""
    gaps = diagnosis.flow.unobserved
    unseen = f"; not observed: {_gaps(gaps)}" if gaps else ""
    verdict = _VERDICTS[diagnosis.learns]
    sentence = " ".join(f"unvanish: {verdict}{why}{unseen}".split())
    return textwrap.fill(sentence, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _draw(content: RenderableType, width: int, color: bool) -> str:
    """Rich's text without its padding at the ends of lines; colour only where asked, whatever the environment says."""
    out = StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
    )
    console.print(content)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _headline(finding: Finding) -> RenderableType:
    """One line; the places hang under the cause where they need more."""
    text = Text.assemble(
        (finding.cause, _COLORS[finding.severity]),
        f" in {places(finding.where)}",
        (f" ({_weight(finding)})", "dim"),
    )
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_row("unvanish:", text)
    return line


def _weight(finding: Finding) -> str:
    """A high severity is the rule, and goes without saying."""
    severity = "" if finding.severity == "high" else f", severity {finding.severity}"
    return f"{finding.confidence:.0%} sure{severity}"


def _indented(text: str, style: str = "") -> Padding:
    return Padding(Text(text, style), (0, 0, 0, 2))


def _evidence(finding: Finding) -> RenderableType:
    if not finding.evidence:
        return ""
    table = Table("measured", "value", "normal", box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for row in finding.evidence:
        table.add_row(Text(row.name), Text(_value(row)), Text(row.normal, "dim"))
    return Padding(table, (1, 0, 1, 2))


def _value(row: Evidence) -> str:
    if row.unit == "decades" and row.value == math.inf:
        return "all of it"
    digits = 4 if row.unit == "" and "loss" in row.name else 2 if row.unit == "decades" and abs(row.value) < 10 else 3
    return f"{number(row.value, digits)} {row.unit}".rstrip()


def number(value: float | None, digits: int = 4) -> str:
    """A number in ``digits`` digits, far ones in 2; what is no number is said in words, never printed as a zero.

    >>> number(1.5321e-9), number(2.30261), number(242800.0), number(float("nan")), number(None)
    ('1.5e-09', '2.303', '2.4e+05', 'NaN', 'not observed')
    """
    if value is None:
        return "not observed"
    if math.isnan(value):
        return "NaN"
    near = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.{digits}g}" if near and (digits >= 4 or abs(value) < 1000) else _far(value, digits)


def _far(value: float, digits: int) -> str:
    return f"{value:.0f}" if 1000 <= abs(value) < 1e5 and digits < 4 else f"{value:.2g}"


def _remedies(finding: Finding) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    for rank, remedy in enumerate(finding.remedies, start=1):
        table.add_row(f"{rank}.", Text(remedy))
    return Group(_indented("What to do", "bold"), Padding(table, (0, 0, 1, 4)))


def _folded(root: Finding) -> list[RenderableType]:
    """The symptoms, one line each: they go away with the root cause."""
    if not root.symptoms:
        return []
    lines = [_line(f"- {symptom.cause} in {places(symptom.where)}{_proof(symptom)}") for symptom in root.symptoms]
    return [_indented("Explained by it, to go away with it", "bold"), *lines, ""]


def _proof(finding: Finding) -> str:
    """The first number of a finding, which is its own; those after it are common to many."""
    return f": {finding.evidence[0].name} {_value(finding.evidence[0])}" if finding.evidence else ""


def _others(findings: Sequence[Finding]) -> list[RenderableType]:
    if not findings:
        return []
    parts: list[RenderableType] = [
        _indented("A fault of its own" if len(findings) == 1 else "Faults of their own", "bold")
    ]
    for finding in findings:
        parts.append(_indented(f"- {finding.cause} in {places(finding.where)} ({_weight(finding)})"))
        parts.append(Padding(Text(finding.message), (0, 0, 0, 4)))
        parts += [Padding(Text(f"Do: {remedy}"), (0, 0, 0, 4)) for remedy in finding.remedies[:1]]
        parts += [_line(f"  explains {symptom.cause} in {places(symptom.where)}") for symptom in finding.symptoms]
    return [*parts, ""]


def _picture(flow: Flow, width: int) -> list[RenderableType]:
    """The gradient, where there is something to see: a flat line is no news."""
    return [_indented(gradient_picture(flow, width=min(width, 100) - 2)), ""] if drawn(flow) else []


def _unobserved(names: Sequence[str]) -> list[RenderableType]:
    return [_line(f"Not observed: {_gaps(names)}", "dim")] if names else []


def _gaps(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _line(text: str, style: str = "") -> Padding:
    """One line of the terminal, cut with an ellipsis where it is longer."""
    flat = " ".join(text.split())
    indent = len(text) - len(text.lstrip()) + 2
    return Padding(Text(flat, style, no_wrap=True, overflow="ellipsis"), (0, 0, 0, indent))
