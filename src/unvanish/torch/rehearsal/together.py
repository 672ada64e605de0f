"""Several optimizers that step one after another on one loss: Muon for the matrices and AdamW for the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import LBFGS, Optimizer


class Together(Optimizer):
    """Steps all of its ``parts``, and shows the groups of all as its own.

    It is none of PyTorch's by construction (``Optimizer.__init__`` is not called): that would write into the groups,
    which are the user's.
    """

    def __init__(self, parts: Iterable[Optimizer]) -> None:
        """Take optimizers that share no parameter; nothing of them changes before ``step``."""
        self.parts = tuple(parts)
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each, in their order."""
        assert closure is None, "none of the parts is asked for the loss again"
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of each."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def __deepcopy__(self, memo: dict[int, Any]) -> Together:
        """Copies of the parts."""
        return Together(copy.deepcopy(part, memo) for part in self.parts)


def together(optimizers: Iterable[Optimizer]) -> Optimizer | None:
    """One optimizer for all of them; None for none, and where LBFGS is among several: it asks for the loss again."""
    parts = tuple(optimizers)
    if len(parts) == 1:
        return parts[0]
    return Together(parts) if parts and not any(isinstance(part, LBFGS) for part in parts) else None


def parts_of(optimizer: Optimizer | None) -> tuple[Optimizer, ...]:
    """Those that an optimizer stands for, itself as a rule."""
    if optimizer is None:
        return ()
    return optimizer.parts if isinstance(optimizer, Together) else (optimizer,)
