"""A program that met NaN before its first step, and therefore never made one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from unvanish.torch.run.assemble import renamed
from unvanish.torch.run.birth import find_birth_unwatched
from unvanish.torch.run.watch import Watch
from unvanish.types import Flow, LossView, NonFinite

NOTE = "no optimizer made a step: the program stopped at the NaN, or left out every batch that had one"


def stillborn(watch: Watch, left: Sequence[Tensor]) -> Flow | None:
    """The Flow of a program without a step, if a NaN or Inf stood in its way.

    Args:
        watch: what was seen of it.
        left: losses that are not finite, in the variables that it left behind.
    """
    born = watch.birth() or _of_a_loss(watch, left)
    if born is None:
        return None
    flow = Flow(sites=(), parameters=(), loss=LossView(math.nan), nonfinite=born, origin="run")
    prefix = watch.roots.common_prefix()
    return flow if prefix is None else renamed(flow, prefix)


def variables(trace: TracebackType | None) -> list[Any]:
    """Values of all variables of the frames that an exception passed."""
    values: list[Any] = []
    while trace is not None:
        values += trace.tb_frame.f_locals.values()
        trace = trace.tb_next
    return values


def broken_losses(values: Iterable[Any]) -> list[Tensor]:
    """Those of the values that are a single number with a graph, but not a finite one."""
    tensors = [value for value in values if isinstance(value, Tensor) and value.grad_fn is not None]
    return [loss for loss in tensors if loss.numel() == 1 and not bool(torch.isfinite(loss.detach()).all())]


def _of_a_loss(watch: Watch, left: Sequence[Tensor]) -> NonFinite | None:
    if not left:
        return None
    watch.roots.refresh()
    return find_birth_unwatched(left[0], watch.roots.names)
