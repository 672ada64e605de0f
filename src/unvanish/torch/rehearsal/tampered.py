"""Numbers without a history: does the loss depend on them, where a gradient was meant to come back through them?

A derivative taken without ``create_graph=True``, or ``sample()`` where ``rsample()`` is meant, is a constant to the
weights that made it.  Nothing fails where the loss has other terms.  The test is to put other numbers in their place,
on a copy and from the same random state: where they go tells what they are for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
class _Met:
    """How many such numbers were met, and whether the program also asks how probable its samples are."""

    derivatives: int = 0
    samples: int = 0
    scored: bool = False


@dataclass(frozen=True, slots=True)
class _Run:
    """The loss of a forward pass, and the sizes of what the layers with weights were given."""

    loss: float
    fed: tuple[tuple[str, float], ...]
    met: _Met


def lost_histories(model: nn.Module, goal: Objective, batch: Any) -> tuple[Cut, ...]:
    """Derivatives without a graph in the loss, and samples without a gradient on their way into a layer."""
    plain = _run(model, goal, batch)
    met = plain.met
    if not (met.derivatives or met.samples) or not _alike(plain, _run(model, goal, batch)):
        return ()
    derivative = _lost_derivative(plain, _run(model, goal, batch, derivatives=_FACTOR)) if met.derivatives else None
    sample = _lost_sample(plain, _run(model, goal, batch, samples=_FACTOR)) if met.samples else None
    return tuple(cut for cut in (derivative, sample) if cut is not None)


def _lost_derivative(plain: _Run, moved: _Run) -> Cut | None:
    """Derivatives by data that enter the loss; one that becomes an input, as an adversarial step does, may be plain."""
    if _close(plain.loss, moved.loss) or _first_changed(plain, moved) is not None:
        return None
    return Cut("loss", "create_graph", (), "the loss depends on a derivative that has no graph of its own")


def _lost_sample(plain: _Run, moved: _Run) -> Cut | None:
    """Samples that a layer is given; with a policy's, the loss asks for their probability, which has a gradient."""
    after = _first_changed(plain, moved)
    if plain.met.scored or after is None or _close(plain.loss, moved.loss):
        return None
    return Cut(after, "sample", (), f"what {after} is given was drawn by sample()")


def _alike(one: _Run, other: _Run) -> bool:
    return _close(one.loss, other.loss) and _first_changed(one, other) is None


def _first_changed(one: _Run, other: _Run) -> str | None:
    """The first layer that is given something else."""
    pairs = zip(one.fed, other.fed, strict=False)
    return next((name for (name, before), (_, after) in pairs if not _close(before, after)), None)


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME, abs_tol=1e-30)


def _run(model: nn.Module, goal: Objective, batch: Any, *, derivatives: float = 1.0, samples: float = 1.0) -> _Run:
    """A pass on a copy, with the numbers multiplied by these factors."""
    work, trained = copy_of(model, None, goal)
    fed: list[tuple[str, float]] = []
    met = _Met()
    with preserved_randomness(), _watched(work.model, fed), _derivatives(met, derivatives), _samples(met, samples):
        loss = float(trained.run(work.model, fresh(batch)).detach())
    return _Run(loss, tuple(fed), met)


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
def _derivatives(met: _Met, factor: float) -> Iterator[None]:
    """Multiply what ``torch.autograd.grad`` returns for data without a graph.

    It and ``backward`` go through one function of their module, which ``from torch.autograd import grad`` uses as well.
    """
    original = _autograd._engine_run_backward

    def engine(outputs: Any, gradients: Any, keep: Any, create: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(outputs, gradients, keep, create, inputs, *args, **kwargs)
        if create or kwargs.get("accumulate_grad") or any(isinstance(one, nn.Parameter) for one in inputs):
            return found
        met.derivatives += 1
        return tuple(one if one is None else one * factor for one in found)

    _autograd._engine_run_backward = engine
    try:
        yield
    finally:
        _autograd._engine_run_backward = original


@contextmanager
def _samples(met: _Met, factor: float) -> Iterator[None]:
    """Multiply what ``sample()`` returns where ``rsample()`` would have had a gradient to pass on."""
    kinds = list(_kinds(Distribution))
    originals = [
        (kind, name, vars(kind)[name]) for kind in kinds for name in ("sample", "log_prob") if name in vars(kind)
    ]
    for kind, name, original in originals:
        setattr(kind, name, (_drawing if name == "sample" else _scoring)(original, met, factor))
    try:
        yield
    finally:
        for kind, name, original in originals:
            setattr(kind, name, original)


def _kinds(kind: type[Distribution]) -> Iterator[type[Distribution]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def _drawing(original: Callable[..., Any], met: _Met, factor: float) -> Callable[..., Any]:
    def sample(self: Distribution, *args: Any, **kwargs: Any) -> Any:
        drawn = original(self, *args, **kwargs)
        if not (torch.is_grad_enabled() and self.has_rsample and _trains(self)) or not drawn.is_floating_point():
            return drawn
        met.samples += 1
        return drawn * factor

    return sample


def _scoring(original: Callable[..., Any], met: _Met, _factor: float) -> Callable[..., Any]:
    def log_prob(self: Distribution, *args: Any, **kwargs: Any) -> Any:
        met.scored = met.scored or _trains(self)
        return original(self, *args, **kwargs)

    return log_prob


def _trains(distribution: Distribution) -> bool:
    """Do its parameters require gradients?"""
    return any(isinstance(part, Tensor) and part.requires_grad for part in vars(distribution).values())
