"""Enough of the user's first step to train a copy on its batch later: interventions after the script has ended.

The loss is built again of the network's output, or else the calls that made it are made again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from unvanish import reading
from unvanish.torch.rehearsal.attempt import Attempt
from unvanish.torch.rehearsal.copies import Working, preserved_randomness, working_copy
from unvanish.torch.rehearsal.experiments import experiments
from unvanish.torch.rehearsal.hooks import drop
from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.rehearsal.tampered import lost_histories
from unvanish.torch.rehearsal.together import parts_of, together
from unvanish.torch.run.batch import LARGEST
from unvanish.torch.run.quiet import unheard
from unvanish.torch.run.replay import Played, objective
from unvanish.torch.run.seen import Seen
from unvanish.torch.run.streams import unprinted
from unvanish.torch.views.mixing import mixed_at
from unvanish.torch.views.padding import only_padding
from unvanish.types import Experiment, Flow, LossView

_FAR = 2.0  # times the rate of most steps: a schedule's full rate is worth a try


@dataclass(slots=True)
class Trial:
    """Copies as they were at the first step, and how they come to a loss; ``loss``: that of a rebuilt one.

    ``optimizers`` = those of the program that are copied.
    """

    work: Working
    optimizers: tuple[weakref.ref[Optimizer], ...]
    objective: Objective
    data: Any
    loss: LossView | None = None

    def only(self, optimizers: Sequence[weakref.ref[Optimizer]]) -> Trial | None:
        """The same, trained by these of its optimizers alone; None if it has not all of them."""
        if any(reference not in self.optimizers for reference in optimizers):
            return None
        parts = zip(self.optimizers, parts_of(self.work.optimizer), strict=True)
        chosen = together(part for reference, part in parts if reference in optimizers)
        return replace(self, work=self.work._replace(optimizer=chosen), optimizers=tuple(optimizers))


def keep(seen: Seen, optimizers: Sequence[weakref.ref[Optimizer]]) -> Trial | None:
    """Copy what is trained before its first step; None where it cannot be copied, or its loss made again."""
    optimizer = together(alive for reference in optimizers if (alive := reference()) is not None)
    if optimizer is None:
        return None
    batch, tape = seen.batch, seen.tape
    if batch is not None:
        model = batch.module
    elif tape is not None and tape.size <= LARGEST:
        model = Played(tape, seen)
    else:
        return None
    try:
        work = working_copy(model, optimizer, ())
    except ValueError:
        return None
    if work.optimizer is not None:
        drop(work.optimizer)  # of a schedule in a hook, the rates that were seen are tried
    if batch is None:
        return Trial(work, tuple(optimizers), objective(), None)
    return Trial(work, tuple(optimizers), batch.objective, batch.data, batch.loss)


@contextmanager
def _unnoticed() -> Iterator[None]:
    """The user's network is run once more, and neither its random numbers nor its words show it."""
    with preserved_randomness(), torch.enable_grad(), unheard(), unprinted():
        yield


def tried(trial: Trial, flow: Flow, rates: tuple[float, ...] = (), steps: int = 40) -> tuple[Experiment, ...]:
    """Train copies on the first batch with one lever moved each; nothing where its loss came out otherwise.

    Args:
        trial: the copies.
        flow: what was seen of the training itself.
        rates: the learning rates that the groups had in most of it; without them those of the first step, or of the
            schedule that begins there.
        steps: of each experiment.
    """
    model, optimizer, _ = trial.work
    assert optimizer is not None, "copied with the model"
    full = _set_rates(optimizer, rates)
    loss = trial.loss or flow.loss
    attempt = Attempt(model, optimizer, trial.objective, [trial.data], steps, loss.floor)
    with _unnoticed():
        if isinstance(model, Played) and not model.faithful():
            return ()
        made = experiments(model, optimizer, trial.objective, [trial.data], replace(flow, loss=loss), steps)
        if full < _FAR or (made[0].progress or 0.0) >= reading.LEARNS:
            return made
        return (*made, *attempt.tried("learning-rate", full))


def examined(trial: Trial, flow: Flow) -> Flow:
    """The flow with what other numbers in the first batch show.

    Samples that read one another, padding that is read, and derivatives that lead nowhere.
    """
    model, how, data = trial.work.model, trial.objective, trial.data
    with _unnoticed():
        if isinstance(model, Played):
            lost = () if model.tape.derives_inputs or not flow.experiments else lost_histories(model, how, data)
            return replace(flow, cuts=(*flow.cuts, *lost))
        mixed = None if how.loss_fn is None else mixed_at(model, how, data)
        return replace(flow, mixed=mixed, cuts=(*flow.cuts, *only_padding(model, how, data)))


def _set_rates(optimizer: Optimizer, rates: tuple[float, ...]) -> float:
    """Give the groups these learning rates; the factor by which the full rate of a schedule is larger."""
    groups = [group for group in optimizer.param_groups if group.get("lr") is not None]
    full = 1.0
    for group, rate in zip(groups, rates, strict=False):  # it may have got more groups since
        full = max(full, float(group.get("initial_lr", group["lr"])) / rate) if rate else full
        group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate
        group.pop("initial_lr", None)  # these are the training's own rates, and no longer the start of a schedule
    return full
