"""One root cause, its symptoms folded under it."""

from __future__ import annotations

from unvanish.types import Diagnosis, Finding, Flow


def rank(flow: Flow, findings: list[Finding]) -> Diagnosis:
    """Order the findings, most upstream and most certain first."""
    ordered = sorted(findings, key=lambda finding: -finding.confidence)
    return Diagnosis(tuple(ordered), flow)
