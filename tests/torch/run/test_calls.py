"""A call of the user's network, made again from its arguments in one value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from unvanish.torch.rehearsal.objective import call, inputs_of


class Plain(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return scale * (x if mask is None else x * mask)


class Open(nn.Module):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return x * options.get("scale", 1.0) + options.get("shift", 0.0)


class Sums(nn.Module):
    def forward(self, *parts: Tensor, scale: float = 1.0) -> Tensor:
        return scale * torch.stack(parts).sum(0)


class Lists(nn.Module):
    def forward(self, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).sum(0)


class Keyed(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["x"] + batch["y"]


class Packed(nn.Module):
    def forward(self, sequence: PackedSequence) -> Tensor:
        return sequence.data


class PositionOnly(nn.Module):
    def forward(self, x: Tensor, /, scale: float = 1.0) -> Tensor:
        return scale * x


X, M = torch.randn(3, 2), torch.randn(3, 2)
CALLS: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = [
    (Plain(), (X,), {}),
    (Plain(), (X, M), {}),
    (Plain(), (), {"x": X, "mask": M}),
    (Plain(), (X,), {"mask": M}),
    (Plain(), (X, M), {"scale": 2.0}),
    (Open(), (X,), {"scale": 3.0, "shift": M}),
    (Sums(), (X, M), {}),
    (Lists(), ([X, M],), {}),
    (Keyed(), ({"x": X, "y": M},), {}),
    (Keyed(), (), {"batch": {"x": X, "y": M}}),
    (Packed(), (pack_sequence([X, M]),), {}),
]


@pytest.mark.parametrize("case", CALLS, ids=lambda case: f"{type(case[0]).__name__}-{len(case[1])}-{'-'.join(case[2])}")
def test_the_same_call_again(case: tuple[nn.Module, tuple[Any, ...], dict[str, Any]]) -> None:
    model, args, keywords = case
    inputs = inputs_of(model, args, keywords)
    assert torch.equal(call(model, inputs), model(*args, **keywords))


@pytest.mark.parametrize(
    ("model", "args", "keywords"),
    [(Plain(), (), {}), (Sums(), (X, M), {"scale": 2.0}), (PositionOnly(), (X,), {"scale": 2.0})],
)
def test_what_cannot_be_said_in_one_value(model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    assert inputs_of(model, args, keywords) is None
