"""What a zoo program is: a network with its data and optimizer, and what an expert says about it.

Each builder below makes the program twice: as it is (``build``) and with nothing but the named fault repaired
(``repaired``).  That the twin trains, and the program does not, is the measured proof of the label; ``_verify``
prints it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Program:
    """What a user passes to ``diagnose``."""

    model: nn.Module
    batches: list[Any]
    optimizer: torch.optim.Optimizer | None
    loss_fn: Callable[..., torch.Tensor] | None = None
    objective: Callable[..., torch.Tensor] | None = None

    def loss(self, batch: Any) -> torch.Tensor:
        """The training loss of one batch, computed as the user's loop would."""
        if self.objective is not None:
            return self.objective(self.model, batch)
        if self.loss_fn is None:
            raise ValueError("a program needs loss_fn or objective")
        inputs, target = batch
        return self.loss_fn(self.model(inputs), target)


@dataclass(frozen=True)
class Case:
    """A program with its ground truth.

    ``cause`` is the expected first cause (None: healthy), ``accept`` the other first causes an expert would also
    accept.  The place is right if any name in ``finding.where`` is found by ``re.search`` with any regex of
    ``where``.  Thresholds are never tuned on a ``holdout`` case.  ``repaired`` builds the twin without the fault.
    """

    name: str
    build: Callable[[int], Program]
    cause: str | None
    accept: tuple[str, ...]
    where: tuple[str, ...]
    holdout: bool
    why: str
    repaired: Callable[[int], Program] | None = None


def seeded(builder: Callable[..., Program], *args: bool) -> Callable[[int], Program]:
    """Turn a builder into ``seed -> program`` that leaves the global random state as it was."""

    def build(seed: int) -> Program:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return builder(*args)

    return build


def sick(
    cause: str, *where: str, why: str, accept: tuple[str, ...] = (), holdout: bool = False
) -> Callable[[Callable[[bool], Program]], Case]:
    """Make a case of ``builder(ill)``, where ``ill=False`` repairs the fault and changes nothing else."""

    def make(builder: Callable[[bool], Program]) -> Case:
        return Case(
            name=builder.__name__,
            build=seeded(builder, True),
            cause=cause,
            accept=accept,
            where=where,
            holdout=holdout,
            why=why,
            repaired=seeded(builder, False),
        )

    return make


def well(why: str, *, holdout: bool = False) -> Callable[[Callable[[], Program]], Case]:
    """Make a case of a builder of a healthy program; ``why`` tells what makes it look ill."""

    def make(builder: Callable[[], Program]) -> Case:
        name: str = builder.__name__
        return Case(name, seeded(builder), None, (), (), holdout, why)

    return make
