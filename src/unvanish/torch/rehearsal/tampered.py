"""Numbers without a history: does the loss depend on them, where a gradient was meant to come back through them?

A derivative taken without ``create_graph=True``, or ``sample()`` where ``rsample()`` is meant, is a constant to the
weights that made it.  Nothing fails where the loss has other terms.  The test is to put other numbers in their place,
on a copy and from the same random state: where they go tells what they are for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from unvanish.torch.probe.naming import names_of
from unvanish.torch.probe.scopes import tensors_in
from unvanish.torch.rehearsal.copies import preserved_randomness
from unvanish.torch.rehearsal.moved import copy_of
from unvanish.torch.rehearsal.objective import Objective, fresh
from unvanish.types import Cut

_FACTOR = 1.5  # what the numbers are multiplied by
_SAME = 1e-6  # relative: rounding
_autograd: Any = torch.autograd


@dataclass(slots=True)
class _Count:
    """How many such numbers were met, and whether the program also asks how probable they are."""

    met: int = 0
    scored: bool = False


@dataclass(frozen=True, slots=True)
class _Run:
    """The loss of a forward pass, and the sizes of what the layers with weights were given."""

    loss: float
    fed: tuple[tuple[str, float], ...]
    count: _Count


def lost_histories(model: nn.Module, goal: Objective, batch: Any) -> tuple[Cut, ...]:
    """Derivatives without a graph in the loss, and samples without a gradient on their way into a layer."""
    found = (_lost_derivative(model, goal, batch), _lost_sample(model, goal, batch))
    return tuple(cut for cut in found if cut is not None)


def _lost_derivative(model: nn.Module, goal: Objective, batch: Any) -> Cut | None:
    """Derivatives by data that enter the loss; one that becomes an input, as an adversarial step does, may be plain."""
    trial = _trial(model, goal, batch, _derivatives)
    if trial is None or _first_changed(*trial) is not None:
        return None
    return Cut("loss", "create_graph", (), "the loss depends on a derivative that has no graph of its own")


def _lost_sample(model: nn.Module, goal: Objective, batch: Any) -> Cut | None:
    """Samples that a layer is given; with a policy's, the loss asks for their probability, which has a gradient."""
    trial = _trial(model, goal, batch, _samples)
    if trial is None or trial[0].count.scored:
        return None
    after = _first_changed(*trial)
    return None if after is None else Cut(after, "sample", (), f"what {after} is given was drawn by sample()")


def _trial(
    model: nn.Module, goal: Objective, batch: Any, tamper: Callable[[float], AbstractContextManager[_Count]]
) -> tuple[_Run, _Run] | None:
    """The program as it is and with the numbers changed, where there are any and the loss depends on them."""
    plain = _run(model, goal, batch, tamper(1.0))
    if not plain.count.met:
        return None
    again, moved = (_run(model, goal, batch, tamper(factor)) for factor in (1.0, _FACTOR))
    steady = _close(plain.loss, again.loss) and _first_changed(plain, again) is None
    return (plain, moved) if steady and not _close(plain.loss, moved.loss) else None


def _first_changed(one: _Run, other: _Run) -> str | None:
    """The first layer that is given something else."""
    pairs = zip(one.fed, other.fed, strict=False)
    return next((name for (name, before), (_, after) in pairs if not _close(before, after)), None)


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME, abs_tol=1e-30)


def _run(model: nn.Module, goal: Objective, batch: Any, tampered: AbstractContextManager[_Count]) -> _Run:
    work, trained = copy_of(model, None, goal)
    fed: list[tuple[str, float]] = []
    with preserved_randomness(), _watched(work.model, fed), tampered as count:
        loss = float(trained.run(work.model, fresh(batch)).detach())
    return _Run(loss, tuple(fed), count)


@contextmanager
def _watched(model: nn.Module, fed: list[tuple[str, float]]) -> Iterator[None]:
    """Note the size of every tensor that a module with weights of its own is given."""
    names = names_of(model).modules

    def note(module: nn.Module, args: Any) -> None:
        fed.extend(
            (names[id(module)], float(torch.linalg.vector_norm(given.detach(), ord=1, dtype=torch.float64)))
            for given in tensors_in(args)
            if given.is_floating_point() and given.numel()
        )

    weighted = [module for module in model.modules() if id(module) in names and module._parameters]
    handles = [module.register_forward_pre_hook(note) for module in weighted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _derivatives(factor: float) -> Iterator[_Count]:
    """Multiply what ``torch.autograd.grad`` returns for data without a graph.

    It and ``backward`` go through one function of their module, which ``from torch.autograd import grad`` uses as well.
    """
    count, original = _Count(), _autograd._engine_run_backward

    def engine(outputs: Any, gradients: Any, keep: Any, create: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(outputs, gradients, keep, create, inputs, *args, **kwargs)
        if create or kwargs.get("accumulate_grad") or any(isinstance(one, nn.Parameter) for one in inputs):
            return found
        count.met += 1
        return tuple(one if one is None else one * factor for one in found)

    _autograd._engine_run_backward = engine
    try:
        yield count
    finally:
        _autograd._engine_run_backward = original


@contextmanager
def _samples(factor: float) -> Iterator[_Count]:
    """Multiply what ``sample()`` returns where ``rsample()`` would have had a gradient to pass on."""
    count, kinds = _Count(), list(_kinds(Distribution))
    originals = [
        (kind, name, vars(kind)[name]) for kind in kinds for name in ("sample", "log_prob") if name in vars(kind)
    ]
    for kind, name, original in originals:
        setattr(kind, name, (_drawing if name == "sample" else _scoring)(original, count, factor))
    try:
        yield count
    finally:
        for kind, name, original in originals:
            setattr(kind, name, original)


def _kinds(kind: type[Distribution]) -> Iterator[type[Distribution]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def _drawing(original: Callable[..., Any], count: _Count, factor: float) -> Callable[..., Any]:
    def sample(self: Distribution, *args: Any, **kwargs: Any) -> Any:
        drawn = original(self, *args, **kwargs)
        if not (torch.is_grad_enabled() and self.has_rsample and _trains(self)) or not drawn.is_floating_point():
            return drawn
        count.met += 1
        return drawn * factor

    return sample


def _scoring(original: Callable[..., Any], count: _Count, _factor: float) -> Callable[..., Any]:
    def log_prob(self: Distribution, *args: Any, **kwargs: Any) -> Any:
        count.scored = count.scored or _trains(self)
        return original(self, *args, **kwargs)

    return log_prob


def _trains(distribution: Distribution) -> bool:
    """Do its parameters require gradients?"""
    return any(isinstance(part, Tensor) and part.requires_grad for part in vars(distribution).values())
