"""Faults of whole programs are found by ``unvanish run``, and their healthy twins are left in peace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unvanish import reading
from unvanish.diagnosis import Diagnosis
from unvanish.torch import script
from unvanish.types import Finding

pytestmark = pytest.mark.usefixtures("interpreter")
PROGRAM = str(Path(__file__).parents[2] / "programs" / "faults.py")


def diagnoses(folder: Path, *arguments: str, steps: int | None = None) -> tuple[int, tuple[Diagnosis, ...]]:
    """The exit code, and the diagnosis of each optimizer."""
    file = folder / "diagnosis.json"
    code = script.run(PROGRAM, list(arguments), json_path=file, steps=steps)
    found = json.loads(file.read_text()) if file.exists() else []
    texts = [json.dumps(one) for one in (found if isinstance(found, list) else [found])]
    return code, tuple(map(Diagnosis.from_json, texts))


def findings(folder: Path, *arguments: str, steps: int | None = None) -> tuple[int, tuple[Finding, ...]]:
    """The exit code, and what was found in all optimizers."""
    code, told = diagnoses(folder, *arguments, steps=steps)
    return code, tuple(finding for diagnosis in told for finding in diagnosis.findings)


@pytest.mark.parametrize(
    ("program", "cause", "place"),
    [
        ("skipped", "non-finite", "softmax"),
        ("mostly_skipped", "non-finite", "softmax"),
        ("skipped_in_function", "non-finite", "loss"),
        ("stops", "non-finite", "div"),
        ("scaled_roots", "non-finite", "sqrt"),
        ("late_root", "non-finite", "sqrt"),
        ("piling", "learning-rate-high", "optimizer"),
        ("two_networks", "disconnected", "policy.0"),
        ("never_steps", "disconnected", "policy.0"),
        ("slopes", "disconnected", "known.0"),
        ("warm_up", "learning-rate-low", "optimizer"),
        ("finder", "dead-units", "3"),
        ("late_rate", "learning-rate-high", "optimizer"),
        ("decay", "learning-rate-high", "optimizer"),
        ("game", "disconnected", "generator"),
        ("halves", "disconnected", "encoder"),
        ("outweighed", "loss-mismatch", "loss"),
        ("raw_coordinates", "input-scale", "input"),
        ("plain_slope", "disconnected", "loss"),
        ("own_loss", "learning-rate-low", "optimizer"),
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


def test_who_stops_within_a_warm_up_is_not_told_that_the_rate_is_low(tmp_path: Path) -> None:
    assert findings(tmp_path, "warm_up", "sick", steps=40) == (0, ())


def test_a_training_after_a_search_for_its_rate_is_what_is_reported(tmp_path: Path) -> None:
    _, (diagnosis,) = diagnoses(tmp_path, "finder", "healthy")
    assert len(diagnosis.flow.steps) == 210
    assert diagnosis.flow.experiments


@pytest.mark.parametrize(("program", "others"), [("game", {("critic",), ()}), ("halves", {()})])
def test_a_network_between_weights_and_loss_is_anothers_if_it_has_a_loss_of_its_own(
    program: str, others: set[tuple[str, ...]], tmp_path: Path
) -> None:
    _, told = diagnoses(tmp_path, program, "healthy")
    assert {diagnosis.flow.others for diagnosis in told} == others
    for diagnosis in told:
        names = {site.name.partition(".")[0] for site in reading.body(diagnosis.flow)}
        assert names.isdisjoint(diagnosis.flow.others)
        assert names
