"""NaN in what networks put out: no backward pass need ever come of it, as the program stops or skips the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unvanish.torch.probe.graph import read_graph
from unvanish.torch.probe.naming import Names
from unvanish.torch.probe.scopes import Scopes, tensors_in
from unvanish.torch.run.birth import find_birth
from unvanish.types import NonFinite

_FEW = 5  # batches left out, that are no accident


class Outputs:
    """The outputs of forward passes in training, as long as a window is open.

    An infinity is often meant (logits of forbidden actions), a NaN never.
    """

    def __init__(self) -> None:
        self.birth: NonFinite | None = None
        self._used = self._skipped = 0
        self._waiting = False  # a NaN was put out, and no backward pass was made since

    def look(self, output: Any, scopes: Scopes, names: Names) -> None:
        """A network, or a criterion, has put this out."""
        bad = next((tensor for tensor in tensors_in(output) if _nan(tensor)), None)
        if bad is None:
            return
        self._skipped += self._waiting
        self._waiting = True
        if self.birth is None:
            self.birth = find_birth(read_graph(bad, set()), scopes, names)

    def used(self) -> None:
        """A backward pass begins: what was put out last is used."""
        self._used += 1
        self._waiting = False

    def mostly_skipped(self) -> bool:
        """Were more batches left out for their NaN than used?"""
        return self._skipped >= _FEW and self._skipped > self._used


def _nan(tensor: Tensor) -> bool:
    return tensor.grad_fn is not None and tensor.layout == torch.strided and bool(torch.isnan(tensor).any())
