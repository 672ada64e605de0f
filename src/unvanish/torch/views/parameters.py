"""Parameters: gradient, weight and real update, and how each hangs in the graph and in the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish.torch.probe.graph import Graph
from unvanish.torch.probe.naming import Names
from unvanish.torch.probe.norms import Norms, dense, log, norms
from unvanish.torch.probe.probe import LOW_PRECISION
from unvanish.torch.probe.rows import duplicate_rows, shares
from unvanish.torch.probe.scopes import Scopes
from unvanish.torch.views.strangers import held
from unvanish.types import Parameter

__all__ = [
    "Updates",
    "duplicate_rows",
    "is_low_precision",
    "log_norm",
    "view_newborn",
    "view_parameters",
    "with_updates",
]


def view_parameters(
    named: Mapping[str, Tensor], graph: Graph | None, scopes: Scopes, names: Names, optimizer: Optimizer | None
) -> tuple[Parameter, ...]:
    """Describe all parameters after the backward pass; leaves of the graph without a name come last."""
    leaves = {} if graph is None else graph.leaves
    listed = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
    unknown = {key: leaf for key, leaf in leaves.items() if key not in names.parameters}
    strays = {path: unknown[key] for key, path in held(scopes.calls, unknown).items()}
    used = _used(scopes) | {id(p) for p in strays.values()}
    numbers = _measure([*named.values(), *strays.values()])
    views: list[Parameter] = []
    for name, p in (*named.items(), *strays.items()):
        known, numbered = id(p) in leaves, numbers[len(views)]
        in_optimizer = None if listed is None else id(p) in listed
        view = _view(name, p, numbered, reached=known, in_optimizer=in_optimizer, used=id(p) in used)
        views.append(view if len(views) < len(named) else replace(view, registered=False))
    return tuple(views)


def view_newborn(weights: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> tuple[Parameter, ...]:
    """Describe weights that each forward pass makes anew: strangers of one pass that the next had others in place of.

    Where both met the same one it is another network's, such as a GAN's discriminator in the generator's loss.
    """
    if not others or not set(map(id, weights)).isdisjoint(map(id, others)):
        return ()
    numbers = _measure(list(weights))
    views = (
        _view("", p, n, reached=True, in_optimizer=False, used=True) for p, n in zip(weights, numbers, strict=True)
    )
    return tuple(replace(view, name=f"made in forward {list(view.shape)}", registered=False) for view in views)


def _used(scopes: Scopes) -> set[int]:
    """id of the parameters whose own module ran."""
    return {id(p) for call in scopes.calls for p in call.module._parameters.values() if p is not None}


class _Numbers(NamedTuple):
    """What is measured of one parameter."""

    log_grad: float | None
    log_weight: float | None
    duplicate_rows: float | None
    duplicate_gradient_rows: float | None


def _measure(parameters: list[Tensor]) -> list[_Numbers]:
    """Norms and duplicate rows of all weights and gradients, those of equal shape together."""
    queue = Norms()
    weights, gradients = {}, {}
    for index, parameter in enumerate(parameters):
        weights[index] = queue.add(parameter if _measurable(parameter) else parameter.float())
        if parameter.grad is not None:
            gradients[index] = queue.add(parameter.grad)
    rows = shares((i, p) for i, p in enumerate(parameters) if p.ndim > 1 and not p.is_meta and _measurable(p))
    alike = shares((i, p.grad) for i, p in enumerate(parameters) if rows.get(i) and p.grad is not None)
    logs = queue.logs()
    return [
        _Numbers(logs[gradients[i]] if i in gradients else None, logs[weights[i]], rows.get(i), alike.get(i))
        for i in range(len(parameters))
    ]


def _measurable(parameter: Tensor) -> bool:
    """Quantised weights are whole numbers."""
    return parameter.is_floating_point() or parameter.is_complex()


def _view(
    name: str, parameter: Tensor, numbers: _Numbers, *, reached: bool, in_optimizer: bool | None, used: bool
) -> Parameter:
    gradient = parameter.grad
    low = gradient is not None and is_low_precision(parameter) and gradient.layout == torch.strided
    return Parameter(
        name=name,
        shape=tuple(parameter.shape),
        dtype=str(parameter.dtype).removeprefix("torch."),
        requires_grad=parameter.requires_grad,
        in_optimizer=in_optimizer,
        used=used,
        reached=reached,
        log_grad=numbers.log_grad,
        log_weight=numbers.log_weight,
        zero_gradient=float((gradient == 0).float().mean()) if low and gradient is not None else None,
        duplicate_rows=numbers.duplicate_rows,
        duplicate_gradient_rows=numbers.duplicate_gradient_rows,
        constant=_constant(parameter) if numbers.duplicate_rows in (None, 1.0) else False,
    )


def _constant(parameter: Tensor) -> bool:
    """Is this a matrix whose elements are all the same?  Its rows are alike then, so few have to be asked."""
    if parameter.ndim < 2 or parameter.numel() < 2 or parameter.is_meta:
        return False
    return bool((parameter == parameter.reshape(-1)[0]).all())


def log_norm(tensor: Tensor) -> float:
    """ln of the L2 norm: -inf for exactly zero."""
    found = log(norms([dense(tensor)])[0] if tensor.numel() else 0.0)
    assert found is not None, "a norm has a logarithm"
    return found


@dataclass(slots=True)
class Updates:
    """Weights before an optimizer step, to see what the step really did."""

    before: dict[str, Tensor]

    @classmethod
    def before_step(cls, named: Mapping[str, Tensor]) -> Updates:
        """Keep a copy of the weights."""
        return cls({name: p.detach().clone() for name, p in named.items()})

    def measure(self, named: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
        """Per parameter (ln ||update||, share of elements bitwise unchanged), after the step."""
        measured = {}
        for name, old in self.before.items():
            new = named[name].detach()
            if _measurable(new) and new.shape == old.shape and new.numel():
                difference = dense(new).to(torch.float64) - dense(old).to(torch.float64)
                measured[name] = (log_norm(difference), float((new == old).float().mean()))
        return measured


def with_updates(parameters: tuple[Parameter, ...], measured: dict[str, tuple[float, float]]) -> tuple[Parameter, ...]:
    """The same parameters with their updates filled in."""
    return tuple(
        replace(p, log_update=measured[p.name][0], unchanged=measured[p.name][1]) if p.name in measured else p
        for p in parameters
    )


def is_low_precision(tensor: Tensor) -> bool:
    """Has it so few digits that small updates are lost in it?"""
    return str(tensor.dtype).removeprefix("torch.") in LOW_PRECISION
