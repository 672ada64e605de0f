"""Models as other people write them: no alarm on any of them as they are."""

from __future__ import annotations

import warnings

import pytest
import transformers
from catalogue import PROGRAMS

import unvanish

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import handwritten  # noqa: F401 - importing registers
    import hugging_face  # noqa: F401
    import unusual  # noqa: F401

transformers.logging.set_verbosity_error()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_no_alarm(name: str) -> None:
    p = PROGRAMS[name](0)
    diagnosis = unvanish.diagnose(p.model, p.loss_fn, p.batches, p.optimizer, objective=p.objective)
    assert diagnosis.healthy, str(diagnosis)
    assert diagnosis.flow.sites
    assert diagnosis.flow.experiments
    assert unvanish.Diagnosis.from_json(diagnosis.to_json()) == diagnosis


def test_many_families() -> None:
    assert len(PROGRAMS) >= 60
