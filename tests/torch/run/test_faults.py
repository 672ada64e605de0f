"""Faults of whole programs are found by ``unvanish run``, and their healthy twins are left in peace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unvanish.torch import script
from unvanish.types import Diagnosis, Finding

PROGRAM = str(Path(__file__).parents[2] / "programs" / "faults.py")


def findings(folder: Path, *arguments: str) -> tuple[int, tuple[Finding, ...]]:
    """The exit code, and what was found in all its optimizers."""
    file = folder / "diagnosis.json"
    code = script.run(PROGRAM, list(arguments), json_path=file)
    found = json.loads(file.read_text()) if file.exists() else []
    texts = [json.dumps(one) for one in (found if isinstance(found, list) else [found])]
    return code, tuple(finding for text in texts for finding in Diagnosis.from_json(text).findings)


@pytest.mark.parametrize(
    ("program", "cause", "place"),
    [
        ("skipped", "non-finite", "softmax"),
        ("mostly_skipped", "non-finite", "softmax"),
        ("stops", "non-finite", "div"),
        ("piling", "learning-rate-high", "optimizer"),
        ("two_networks", "disconnected", "policy.0"),
        ("never_steps", "disconnected", "policy.0"),
        ("slopes", "disconnected", "known.0"),
    ],
)
def test_a_fault_is_found_and_its_healthy_twin_left_in_peace(
    program: str, cause: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = findings(tmp_path, program, "healthy")
    assert (code, found) == (0, ()), capsys.readouterr().err
    code, found = findings(tmp_path, program, "sick")
    assert code == 1
    assert [one.cause for one in found] == [cause], capsys.readouterr().err
    assert any(place in where for where in found[0].where)


def test_a_missing_zero_grad_is_told_for_what_it_is(tmp_path: Path) -> None:
    _, (found,) = findings(tmp_path, "piling", "sick")
    assert found.message.startswith("zero_grad() is missing")


@pytest.mark.parametrize("kind", ["healthy", "sick"])
def test_an_infinity_that_is_meant_is_no_birth(kind: str, tmp_path: Path) -> None:
    assert findings(tmp_path, "forbidden", kind) == (2, ())
