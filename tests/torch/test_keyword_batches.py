"""Batches of named inputs are given to the model by name, with or without a loss function."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unvanish


class Tagger(nn.Module):
    """Takes names, as a Hugging Face model does, and makes its own loss where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(12, 16), nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        vectors = self.words(input_ids)
        kept = torch.ones_like(input_ids) if mask is None else mask
        logits = self.head(torch.relu(self.hidden((vectors * kept[..., None]).sum(1))))
        return SimpleNamespace(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


class OneDict(Tagger):
    """Takes the dict itself."""

    def forward(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
        return super().forward(**batch)


class Two(Tagger):
    """Takes a dict and the target, one after the other."""

    def forward(self, features: dict[str, Tensor], target: Tensor) -> Any:  # type: ignore[override]
        return super().forward(**features, labels=target)


def batches(*, labels: bool) -> list[Any]:
    torch.manual_seed(0)
    ids = torch.randint(0, 12, (240, 5))
    y = ids[:, 0] % 3
    parts = zip(ids.split(24), y.split(24), strict=True)
    return [
        ({"input_ids": one, "mask": torch.ones_like(one), **({"labels": t} if labels else {})}, t) for one, t in parts
    ]


def loss_of(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(output.logits, target)


PROGRAMS = [
    (Tagger, None, True),
    (Tagger, None, False),
    (Tagger, loss_of, False),
    (Tagger, loss_of, True),
    (OneDict, loss_of, False),
    (Two, None, False),
]


@pytest.mark.parametrize(("kind", "loss_fn", "labels"), PROGRAMS)
def test_a_healthy_program_of_names_is_run_as_its_author_would(kind: type[Tagger], loss_fn: Any, labels: bool) -> None:
    torch.manual_seed(1)
    model = kind()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    diagnosis = unvanish.diagnose(model, loss_fn, batches(labels=labels), optimizer)
    assert diagnosis.findings == ()
    assert diagnosis.learns
    assert diagnosis.flow.loss.kind == "cross_entropy"


@pytest.mark.parametrize(("kind", "loss_fn", "labels"), PROGRAMS)
def test_a_sick_program_of_names_is_found(kind: type[Tagger], loss_fn: Any, labels: bool) -> None:
    torch.manual_seed(1)
    model = kind()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    diagnosis = unvanish.diagnose(model, loss_fn, batches(labels=labels), optimizer)
    assert [one.cause for one in diagnosis.findings] == ["learning-rate-low"]


def test_labels_are_no_input() -> None:
    torch.manual_seed(1)
    flow = unvanish.diagnose(Tagger(), None, batches(labels=True)).flow
    assert [tuple(view.shape) for view in flow.inputs] == [(24, 5), (24, 5)]


def test_a_model_without_a_loss_says_what_it_needs() -> None:
    model = nn.Bilinear(2, 2, 1)
    named = [({"input1": torch.ones(3, 2), "input2": torch.ones(3, 2)}, torch.ones(3, 1)) for _ in range(2)]
    with pytest.raises(ValueError, match="without a loss"):
        unvanish.diagnose(model, None, named)
