"""The whole zoo, seed 0: the first cause and the place of every sick program, silence on every healthy one.

Three seeds, the confusion matrix and the calibration are in benchmarks/diagnosis.py and benchmarks/RESULTS.md.  The
hold-out programs were never used to set a threshold; they may be wrong now and then, so they are judged as a group.
"""

from __future__ import annotations

import re
import warnings

import pytest

from unvanish import Diagnosis, diagnose
from unvanish.torch.zoo import cases
from unvanish.torch.zoo._case import Case, Program

TUNED = [case for case in cases() if not case.holdout]
HOLDOUT = [case for case in cases() if case.holdout]
SICK = [case for case in TUNED if case.cause is not None]
HEALTHY = [case for case in cases() if case.cause is None]


def diagnosed(program: Program) -> Diagnosis:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch's own, about the faults built in
        return diagnose(program.model, program.loss_fn, program.batches, program.optimizer, objective=program.objective)


def right_cause(case: Case, diagnosis: Diagnosis) -> bool:
    return bool(diagnosis.findings) and diagnosis.findings[0].cause in (case.cause, *case.accept)


def right_place(case: Case, diagnosis: Diagnosis) -> bool:
    places = diagnosis.findings[0].where if diagnosis.findings else ()
    return any(re.search(regex, place) for regex in case.where for place in places)


@pytest.mark.parametrize("case", SICK, ids=lambda case: case.name)
def test_a_sick_program_is_found_out(case):
    diagnosis = diagnosed(case.build(0))
    assert right_cause(case, diagnosis), diagnosis.findings
    assert right_place(case, diagnosis), diagnosis.findings[0].where


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_a_healthy_program_gets_silence(case):
    diagnosis = diagnosed(case.build(0))
    assert diagnosis.healthy, diagnosis.findings


def test_the_hold_out_is_found_out_as_often_as_promised():
    sick = [case for case in HOLDOUT if case.cause is not None]
    verdicts = [(case, diagnosed(case.build(0))) for case in sick]
    causes = [case.name for case, diagnosis in verdicts if not right_cause(case, diagnosis)]
    places = [case.name for case, diagnosis in verdicts if not right_place(case, diagnosis)]
    assert len(causes) <= 0.1 * len(sick), causes
    assert len(places) <= 0.15 * len(sick), places


@pytest.mark.parametrize("case", [case for case in SICK if case.repaired], ids=lambda case: case.name)
def test_the_same_program_without_its_fault_gets_silence(case):
    diagnosis = diagnosed(case.repaired(0))
    assert diagnosis.healthy, diagnosis.findings
