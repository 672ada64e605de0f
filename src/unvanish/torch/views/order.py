"""In which order the classes come: batches that hold few of them teach one class and unteach the others."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_BATCHES, _CLASSES = 4, 4  # fewer say nothing of an order


def classes_seen(batches: Sequence[Any]) -> tuple[float, float] | None:
    r"""How many classes a batch holds in the middle, and how many it would if the data were shuffled.

    Of :math:`n` samples, :math:`\sum_c 1 - (1 - p_c)^n` with the share :math:`p_c` of each class.

    Args:
        batches: as the user gives them; the labels of one are a last part of whole numbers, one per sample.

    Returns:
        Both numbers; None where there are no such labels, or too few to tell.
    """
    labels = [one for one in map(_labels, batches) if one is not None and len(one) > 1]
    if len(labels) < _BATCHES or len(labels) < len(batches):
        return None
    counts = torch.cat(labels).unique(return_counts=True)[1].double()
    shares, size = counts / counts.sum(), statistics.median(map(len, labels))
    expected = float((1 - (1 - shares) ** size).sum())
    return None if len(counts) < _CLASSES else (statistics.median(len(one.unique()) for one in labels), expected)


def _labels(batch: Any) -> Tensor | None:
    last = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    whole = isinstance(last, Tensor) and last.ndim == 1 and not last.is_floating_point() and not last.is_complex()
    return last if whole else None
