"""What goes into the network: scale, spread over features, and what is not finite in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unvanish.torch.probe.graph import Graph
from unvanish.torch.probe.moments import moments
from unvanish.torch.probe.saved import readable
from unvanish.torch.probe.scopes import tensors_in
from unvanish.types import InputView

_WITH_WEIGHTS = ("linear", "convolution", "normalization", "recurrent")
_KEPT = {"Addmm": "_saved_mat1", "Mm": "_saved_self"}  # where the nodes of linear layers keep their rows


def view_inputs(batch: Any, graph: Graph | None) -> tuple[InputView, ...]:
    """Describe the tensors of a batch's input (integer ids and masks are named but not measured)."""
    normalized = graph is not None and _normalized_first(graph)
    tensors = list(_named(batch))
    single = len(tensors) == 1
    views = tuple(_view("input" if single else f"input[{key}]", tensor, normalized) for key, tensor in tensors)
    read = None if graph is None or normalized else _read_first(graph)
    if read is None or any(read.numel() == tensor.numel() for _, tensor in tensors):
        return views
    return (*views, _view("what the first layer reads", read, normalized))


def _read_first(graph: Graph) -> Tensor | None:
    """The rows that the first linear layer is given, as its node keeps them: the program may have put them together."""
    first = next((v for v in graph.vertices if v.kind in _WITH_WEIGHTS), None)
    name = _KEPT.get(first.stem) if first is not None and first.raw_input and readable(first) else None
    rows = None if name is None or first is None else getattr(first.node, name, None)
    return rows if isinstance(rows, Tensor) and rows.ndim == 2 and rows.numel() else None


def _named(batch: Any) -> list[tuple[str, Tensor]]:
    if isinstance(batch, dict):
        return [(str(key), t) for key, value in batch.items() for t in tensors_in(value)]
    return [(str(i), t) for i, t in enumerate(tensors_in(batch))]


def _view(name: str, tensor: Tensor, normalized: bool) -> InputView:
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    if not tensor.is_floating_point():
        return InputView(name, shape, dtype, normalized_first=normalized)
    batch_size = shape[0] if shape else None
    spread, largest = _features(tensor)
    return InputView(name, shape, dtype, moments(tensor, batch_size), spread, largest, normalized)


def _features(tensor: Tensor) -> tuple[float | None, float | None]:
    """Largest / smallest nonzero standard deviation over the features of tabular data, and the largest rms."""
    if tensor.ndim != 2 or len(tensor) < 2:
        return None, None
    wide = tensor.detach().to(torch.float64)
    std = wide.std(dim=0, unbiased=False)
    alive = std[std > 0]
    spread = float(alive.max() / alive.min()) if len(alive) else None
    return spread, float(wide.square().mean(dim=0).sqrt().max())


def _normalized_first(graph: Graph) -> bool:
    """Does a normalisation meet the data before any weight does?"""
    first = next((v for v in graph.vertices if v.kind in _WITH_WEIGHTS), None)
    return first is not None and first.kind == "normalization"
