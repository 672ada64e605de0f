"""No correct layer of torch.nn is called wrong, in whatever state; every class is covered or excluded by name."""

from __future__ import annotations

import warnings

import pytest
import torch
from layer_table import EXCLUDED, ROWS, Uses, spread_loss
from torch import nn

from unvanish.torch.gradcheck import gradcheck


def test_every_class_of_torch_nn_is_in_a_table() -> None:
    known = {
        name for name in dir(nn) if isinstance(getattr(nn, name), type) and issubclass(getattr(nn, name), nn.Module)
    }
    assert known - set(ROWS) - set(EXCLUDED) == set()
    assert set(ROWS) & set(EXCLUDED) == set()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", list(ROWS))
def test_no_false_alarm(name: str, training: bool) -> None:
    torch.manual_seed(len(name))
    row = ROWS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLLLoss2d is deprecated, lazy layers are new
        model = Uses(row.make(), row.how).train(training)
        if "Norm" in name and "Lazy" in name:  # copy.deepcopy refuses their buffers before the first call
            model(*row.inputs())
        check = gradcheck(model, spread_loss, (row.inputs(), torch.zeros(1)))
    assert check.ok, check
    assert check.loss is not None, check
    assert check.loss.ok, check
    assert [one for one in check.skipped if not one.trivial] == [], check
    looked_at = {module.module.partition(".")[0] for module in check.modules}
    assert "layer" in looked_at or name in ("Sequential", "Identity") or _only_copies(name, training), check


def _only_copies(name: str, training: bool) -> bool:
    return "Dropout" in name and not training
