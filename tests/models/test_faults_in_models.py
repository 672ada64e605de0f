"""One fault in a real model: the first cause and its place."""

from __future__ import annotations

import re

import pytest
import test_third_party  # noqa: F401 - registers the models
from faults import FAULTS

import unvanish


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(FAULTS))
def test_first_cause_and_place(name: str) -> None:
    fault = FAULTS[name]
    p = fault.build()
    diagnosis = unvanish.diagnose(p.model, p.loss_fn, p.batches, p.optimizer, objective=p.objective)
    assert not diagnosis.healthy
    first = diagnosis.findings[0]
    assert first.cause in fault.cause, str(diagnosis)
    assert any(re.search(fault.place, where) for where in first.where), first.where
    assert first.message.count(". ") >= 2  # what is, what is expected, what to do
