"""Batches whose classes come in order are noted; shuffled ones, and labels that are no classes, are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unvanish
from unvanish.torch.views.order import classes_seen


def batches(order: str, classes: int = 8, batch: int = 32, count: int = 16) -> list[tuple[Tensor, Tensor]]:
    labels = torch.arange(classes).repeat_interleave(batch * count // classes)
    labels = labels if order == "sorted" else labels[torch.randperm(len(labels))]
    centres = torch.randn(classes, 12)
    inputs = centres[labels] + 0.1 * torch.randn(len(labels), 12)
    return list(zip(inputs.split(batch), labels.split(batch), strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_sorted_classes_are_noted(order: str, seed: int) -> None:
    torch.manual_seed(seed)
    data = batches(order)
    oracle = sorted(len(set(labels.tolist())) for _, labels in data)
    seen = classes_seen(data)
    assert seen is not None
    drawn = [len(set(torch.randint(8, (32,)).tolist())) for _ in range(2000)]
    assert seen[0] == (oracle[7] + oracle[8]) / 2
    assert seen[1] == pytest.approx(sum(drawn) / len(drawn), abs=0.05)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8))
    found = unvanish.diagnose(model, F.cross_entropy, data, torch.optim.SGD(model.parameters(), 0.05))
    assert any("are the data in order" in note for note in found.notes) == (order == "sorted")


@pytest.mark.parametrize(
    "held",
    [
        [torch.randn(4, 3)] * 8,
        [(torch.randn(4, 3), torch.randn(4))] * 8,
        [(torch.randn(4, 3), torch.arange(8).view(4, 2))] * 8,
        [{"x": torch.randn(4, 3), "y": torch.arange(4)}] * 8,
        [(torch.randn(4, 3), torch.arange(4) % 2)] * 8,
        [(torch.randn(1, 3), torch.tensor([k])) for k in range(8)],
        [(torch.randn(4, 3), torch.arange(4))] * 3,
    ],
    ids=["no target", "numbers", "sequences", "dict", "two classes", "batches of one", "three batches"],
)
def test_what_is_no_order_of_classes(held: list[Any]) -> None:
    assert classes_seen(held) is None


def test_small_batches_of_many_classes_are_in_no_order() -> None:
    torch.manual_seed(0)
    each, shuffled = classes_seen([(torch.randn(4, 3), torch.randint(100, (4,))) for _ in range(30)]) or (0.0, 0.0)
    assert 3 * each > shuffled
