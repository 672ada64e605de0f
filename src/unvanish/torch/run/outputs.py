"""NaN in what networks put out: no backward pass need ever come of it, as the program stops or skips the batch."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.probe.graph import read_graph
from unvanish.torch.probe.naming import Names
from unvanish.torch.probe.scopes import Scopes, tensors_in
from unvanish.torch.run.birth import find_birth
from unvanish.torch.run.frames import lost_losses
from unvanish.types import NonFinite

_SEARCHES = 64  # through the variables of a program; a rollout calls its network thousands of times
_FEW = 5  # batches left out, that are no accident


class Outputs:
    """The outputs of forward passes in training, as long as a window is open.

    An infinity is often meant (logits of forbidden actions), a NaN never.
    """

    def __init__(self) -> None:
        self.birth: NonFinite | None = None
        self._used = self._skipped = 0
        self._waiting = False  # a NaN was put out, and no backward pass was made since
        self._idle = False  # something was put out, and no backward pass was made since
        self._searches = _SEARCHES
        self._lost: weakref.ref[Tensor] | None = None

    def look(self, output: Any, scopes: Scopes, names: Names) -> None:
        """A network, or a criterion, has put this out."""
        bad = next((tensor for tensor in tensors_in(output) if _nan(tensor)), None)
        self._idle = True
        if bad is not None:
            self._skipped += self._waiting
            self._waiting = True
            self._learn(bad, scopes, names)

    def look_back(self, scopes: Scopes, names: Names) -> None:
        """A network is called, and what was put out before came to nothing: is its loss, still in reach, a NaN?"""
        if not self._idle or self._waiting or not self._searches:
            return
        self._searches -= 1
        lost = [loss for loss in lost_losses() if self._lost is None or self._lost() is not loss]
        if lost:
            self._lost = weakref.ref(lost[0])
            self._skipped += 1
            self._learn(lost[0], scopes, names)

    def _learn(self, bad: Tensor, scopes: Scopes, names: Names) -> None:
        if self.birth is None:
            self.birth = find_birth(read_graph(bad, set()), scopes, names)

    def used(self) -> None:
        """A backward pass begins: what was put out last is used."""
        self._used += 1
        self._waiting = self._idle = False

    def mostly_skipped(self) -> bool:
        """Were more batches left out for their NaN than used?"""
        return self._skipped >= _FEW and self._skipped > self._used


def _nan(tensor: Tensor) -> bool:
    return tensor.grad_fn is not None and tensor.layout == torch.strided and bool(torch.isnan(tensor).any())
