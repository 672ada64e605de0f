"""Parameters: gradient, weight and real update, and how each hangs in the graph and in the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish.torch.graph import Graph
from unvanish.torch.naming import Names
from unvanish.torch.norms import dense, norms
from unvanish.torch.scopes import Scopes
from unvanish.types import Parameter

_LOW_PRECISION = (torch.float16, torch.bfloat16)
_NESTED = 4  # lists in lists in lists are looked through, no deeper


def view_parameters(
    named: Mapping[str, Tensor], graph: Graph | None, scopes: Scopes, names: Names, optimizer: Optimizer | None
) -> tuple[Parameter, ...]:
    """Describe all parameters after the backward pass; leaves of the graph without a name come last."""
    reached = set() if graph is None else set(graph.leaves)
    listed = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
    used = _used(scopes)
    views = [
        _view(name, p, id(p) in reached, None if listed is None else id(p) in listed, used.get(id(p)))
        for name, p in named.items()
    ]
    unknown = {key: leaf for key, leaf in (graph.leaves if graph else {}).items() if key not in names.parameters}
    for key, path in _held(scopes, unknown).items():
        view = _view(path, unknown[key], True, None if listed is None else key in listed, True)
        views.append(replace(view, registered=False))
    return tuple(views)


def _held(scopes: Scopes, unknown: dict[int, Tensor]) -> dict[int, str]:
    """Weights the model holds without having registered them: id -> path, such as ``blocks[0].weight``.

    A leaf that no attribute of the model leads to is data that asks for a gradient (a PINN's points), not a weight.
    """
    found: dict[int, str] = {}
    for call in scopes.calls if unknown else ():
        for attribute, value in vars(call.module).items():
            if not attribute.startswith("_"):
                prefix = f"{call.name}.{attribute}" if call.name else attribute
                found.update({key: path for key, path in _leaves(prefix, value) if key in unknown})
    return found


def _leaves(path: str, value: object, depth: int = 0) -> Iterator[tuple[int, str]]:
    """Tensors inside modules, lists and dicts, with the Python expression that leads to them."""
    if isinstance(value, Tensor):
        yield id(value), path
    elif isinstance(value, nn.Module):
        yield from ((id(p), f"{path}.{name}") for name, p in value.named_parameters())
    elif isinstance(value, dict | list | tuple) and depth < _NESTED:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from _leaves(f"{path}[{key!r}]", part, depth + 1)


def _used(scopes: Scopes) -> dict[int, bool]:
    """id(parameter) -> did its own module run?"""
    used: dict[int, bool] = {}
    for call in scopes.calls:
        for parameter in call.module.parameters(recurse=False):
            used[id(parameter)] = True
    return used


def _view(name: str, parameter: Tensor, reached: bool, listed: bool | None, used: bool | None) -> Parameter:
    gradient = parameter.grad
    matrix = parameter.ndim >= 2 and not getattr(parameter, "is_meta", False)
    rows = duplicate_rows(parameter) if matrix else None
    low = gradient is not None and parameter.dtype in _LOW_PRECISION and gradient.layout == torch.strided
    return Parameter(
        name=name,
        shape=tuple(parameter.shape),
        dtype=str(parameter.dtype).removeprefix("torch."),
        requires_grad=parameter.requires_grad,
        in_optimizer=listed,
        used=bool(used),
        reached=reached,
        log_grad=None if gradient is None else log_norm(gradient),
        log_weight=log_norm(parameter),
        zero_gradient=float((gradient == 0).float().mean()) if low and gradient is not None else None,
        duplicate_rows=rows,
        duplicate_gradient_rows=duplicate_rows(gradient) if rows and gradient is not None else None,
        constant=matrix and parameter.numel() > 1 and bool((parameter == parameter.reshape(-1)[0]).all()),
    )


def log_norm(tensor: Tensor) -> float:
    """ln of the L2 norm: -inf for exactly zero."""
    value = norms([dense(tensor)])[0] if tensor.numel() else 0.0
    return -math.inf if value == 0 else math.log(value) if value > 0 else math.nan


def duplicate_rows(weight: Tensor) -> float | None:
    """Share of output units whose weights equal another unit's, by one projection on a fixed irregular direction."""
    if weight.layout != torch.strided or len(weight) < 2 or weight.numel() == len(weight):
        return None
    flat = dense(weight).reshape(len(weight), -1).to(torch.float64)
    direction = torch.sin(torch.arange(1, flat.shape[1] + 1, dtype=torch.float64, device=flat.device) ** 1.5)
    values = (flat * direction).sum(dim=1).sort().values
    tolerance = 1e-12 * float(values.abs().max())
    equal = values.diff() <= tolerance
    return float((torch.nn.functional.pad(equal, (0, 1)) | torch.nn.functional.pad(equal, (1, 0))).float().mean())


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
            if new.is_floating_point() and new.shape == old.shape and new.numel():
                difference = new.to(torch.float64) - old.to(torch.float64)
                measured[name] = (log_norm(difference), float((new == old).float().mean()))
        return measured


def with_updates(parameters: tuple[Parameter, ...], measured: dict[str, tuple[float, float]]) -> tuple[Parameter, ...]:
    """The same parameters with their updates filled in."""
    return tuple(
        replace(p, log_update=measured[p.name][0], unchanged=measured[p.name][1]) if p.name in measured else p
        for p in parameters
    )
