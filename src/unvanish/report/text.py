"""A Diagnosis as text for a terminal, a pipe or a log file: it shows, it computes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unvanish.report.picture import gradient_picture
from unvanish.types import Diagnosis, Evidence, Finding

__all__ = ["gradient_picture", "places", "render"]

_COLORS = {"high": "bold red", "medium": "bold yellow", "low": "bold cyan"}


def render(diagnosis: Diagnosis, width: int = 100, color: bool = False) -> str:
    """The whole report: one line for a healthy network, else root cause, proof, cure and what it explains."""
    if diagnosis.healthy:
        return _healthy(diagnosis)
    root, *others = diagnosis.findings
    parts: list[RenderableType] = [_headline(root), "", _indented(root.message), _evidence(root), _remedies(root)]
    parts += [_indented(f"Source: {root.source}", "dim"), *_folded(root), *_others(others), ""]
    parts += [gradient_picture(diagnosis.flow, width=min(width, 100)), ""]
    parts += [_indented(f"Note: {note}", "dim") for note in diagnosis.notes]
    parts += _unobserved(diagnosis.flow.unobserved)
    parts.append(f"  Learn more: unvanish explain {root.cause}")
    return _draw(Group(*parts), width, color)


def places(names: Sequence[str], noun: str = "layers") -> str:
    """Names as a person would write them: all of a few, the ends of many.

    >>> places(["net.0", "net.2"])
    'net.0, net.2'
    >>> places([f"net.{i}" for i in range(0, 46, 2)])
    'net.0 ... net.44 (23 layers)'
    """
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]} ... {names[-1]} ({len(names)} {noun})"


def _healthy(diagnosis: Diagnosis) -> str:
    why = f" ({'; '.join(diagnosis.notes)})" if diagnosis.notes else ""
    gaps = diagnosis.flow.unobserved
    unseen = f"; not observed: {places(gaps, 'things')}" if gaps else ""
    return " ".join(f"unvanish: the network is healthy{why}{unseen}".splitlines())


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


def _headline(finding: Finding) -> Text:
    return Text.assemble(
        "unvanish: ",
        (finding.cause, _COLORS[finding.severity]),
        f" in {places(finding.where)}",
        (f", {_weight(finding)}", "dim"),
    )


def _weight(finding: Finding) -> str:
    return f"{finding.confidence:.0%} sure, severity {finding.severity}"


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
    return f"{number(row.value)} {row.unit}".rstrip()


def number(value: float | None) -> str:
    """Four digits; what is no number is said in words, never printed as a zero.

    >>> number(1.5e-9), number(float("nan")), number(None)
    ('1.5e-09', 'NaN', 'not observed')
    """
    if value is None:
        return "not observed"
    return "NaN" if math.isnan(value) else f"{value:.4g}"


def _remedies(finding: Finding) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    for rank, remedy in enumerate(finding.remedies, start=1):
        table.add_row(f"{rank}.", Text(remedy))
    return Group(_indented("What to do", "bold"), Padding(table, (0, 0, 1, 4)))


def _folded(root: Finding) -> list[RenderableType]:
    """The symptoms, one line each: they go away with the root cause."""
    if not root.symptoms:
        return []
    lines = [_line(f"- {symptom.cause} in {places(symptom.where)}: {symptom.message}") for symptom in root.symptoms]
    return ["", _indented("It explains", "bold"), *lines]


def _others(findings: Sequence[Finding]) -> list[RenderableType]:
    if not findings:
        return []
    parts: list[RenderableType] = ["", _indented("Other findings", "bold")]
    for finding in findings:
        parts.append(_indented(f"- {finding.cause} in {places(finding.where)} ({_weight(finding)})"))
        parts.append(Padding(Text(finding.message), (0, 0, 0, 4)))
        parts += [Padding(Text(f"Do: {remedy}"), (0, 0, 0, 4)) for remedy in finding.remedies[:1]]
        parts += [_line(f"  explains {symptom.cause} in {places(symptom.where)}") for symptom in finding.symptoms]
    return parts


def _unobserved(names: Sequence[str]) -> list[RenderableType]:
    return [_line(f"Not observed: {', '.join(names)}", "dim")] if names else []


def _line(text: str, style: str = "") -> Padding:
    """One line of the terminal, cut with an ellipsis where it is longer."""
    flat = " ".join(text.split())
    indent = len(text) - len(text.lstrip()) + 2
    return Padding(Text(flat, style, no_wrap=True, overflow="ellipsis"), (0, 0, 0, indent))
