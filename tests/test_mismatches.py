"""Each kind of mismatch speaks on its own sick flows by itself, and is silent on all healthy ones."""

from __future__ import annotations

import pytest

from unvanish.rules._mismatch import AbstractMismatch
from unvanish.rules.loss_mismatch import LossMismatch
from unvanish.types import Flow

KINDS = LossMismatch().kinds
SICK = [(kind, flow) for kind in KINDS for flow in kind.sick()]
HEALTHY = [(kind, flow) for kind in KINDS for flow in kind.healthy()]


@pytest.mark.parametrize(("kind", "flow"), SICK, ids=[type(kind).__name__ for kind, _ in SICK])
def test_it_speaks_in_three_parts(kind: AbstractMismatch, flow: Flow) -> None:
    fault = next(kind.faults(flow))
    assert 0.5 < fault.confidence <= 1
    assert "xpect" in fault.message  # "Expected: ...", or "It expects ..."
    assert fault.remedy


@pytest.mark.parametrize(("kind", "flow"), HEALTHY, ids=[type(kind).__name__ for kind, _ in HEALTHY])
def test_it_is_silent(kind: AbstractMismatch, flow: Flow) -> None:
    assert not list(kind.faults(flow))


def test_there_are_all_kinds() -> None:
    assert {type(kind) for kind in KINDS} == set(AbstractMismatch.__subclasses__())
