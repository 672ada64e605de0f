"""Output units that do the same: rows of a weight that equal one another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from unvanish.torch.probe.norms import dense

_CHUNK = 1 << 17  # elements converted to float64 at a time
_EQUAL = 1e-12  # of the largest projection: rounding


def duplicate_rows(weight: Tensor) -> float | None:
    """Share of output units whose weights equal another unit's; None where rows have one element, or there is one."""
    return shares([(0, weight)]).get(0)


def shares(weights: Iterable[tuple[int, Tensor]]) -> dict[int, float]:
    """The same for many weights under their keys; those of equal shape are measured together."""
    groups: dict[tuple[object, ...], list[tuple[int, Tensor]]] = defaultdict(list)
    for key, weight in weights:
        if weight.layout == torch.strided and len(weight) > 1 and weight.numel() > len(weight):
            plain = dense(weight)
            flat = plain.reshape(len(plain), -1)
            groups[flat.shape, flat.dtype, flat.device].append((key, flat))
    found: dict[int, float] = {}
    for group in groups.values():
        room = max(1, _CHUNK // group[0][1].numel())
        for start in range(0, len(group), room):
            part = group[start : start + room]
            found.update(zip((key for key, _ in part), _shares([flat for _, flat in part]), strict=True))
    return found


def _shares(weights: list[Tensor]) -> list[float]:
    """Share of duplicates in matrices of one shape, by one projection on a fixed irregular direction."""
    rows, width = weights[0].shape
    steps = torch.arange(1, width + 1, dtype=torch.float64, device=weights[0].device)
    direction = torch.sin(steps**1.5)
    chunks = torch.stack(weights).reshape(-1, width).split(max(1, _CHUNK // width))
    values = torch.cat([chunk.to(torch.float64) @ direction for chunk in chunks]).reshape(-1, rows)
    values = values.sort(dim=1).values
    tolerance = _EQUAL * values.abs().amax(dim=1, keepdim=True)
    equal = values.diff(dim=1) <= tolerance
    pad = torch.nn.functional.pad
    measured: list[float] = (pad(equal, (0, 1)) | pad(equal, (1, 0))).float().mean(dim=1).tolist()
    return measured
