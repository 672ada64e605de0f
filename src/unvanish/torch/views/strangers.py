"""Weights in the graph of a loss that ``model.parameters()`` does not have: held by an attribute, or by nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish.torch.probe.naming import Names
from unvanish.torch.probe.scopes import Call

_NESTED = 4  # lists in lists in lists are looked through, no deeper


def nobodys(
    leaves: Mapping[int, Tensor], calls: Sequence[Call], names: Names, optimizer: Optimizer | None
) -> tuple[nn.Parameter, ...]:
    """Weights that neither the model nor its optimizer knows: another network's, or made in this forward pass."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
    unknown = {key: leaf for key, leaf in leaves.items() if key not in names.parameters and key not in stepped}
    known = held(calls, unknown)
    return tuple(p for key, p in unknown.items() if isinstance(p, nn.Parameter) and key not in known)


def held(calls: Sequence[Call], unknown: Mapping[int, Tensor]) -> dict[int, str]:
    """Weights the model holds without having registered them: id -> path, such as ``blocks[0].weight``.

    A leaf that no attribute of the model leads to is data that asks for a gradient (a PINN's points), not a weight.
    """
    found: dict[int, str] = {}
    for call in calls if unknown else ():
        for attribute, value in vars(call.module).items():
            if not attribute.startswith("_"):
                prefix = f"{call.name}.{attribute}" if call.name else attribute
                found.update({key: path for key, path in _leaves(prefix, value) if key in unknown})
    return found


def _leaves(path: str, value: object, depth: int = 0) -> Iterator[tuple[int, str]]:
    """Tensors inside modules, lists and dicts, with the Python expression that leads to them."""
    if isinstance(value, Tensor):
        yield id(value), path
        yield from ((id(leaf), path) for leaf in made_of(value))
    elif isinstance(value, nn.Module):
        yield from ((id(p), f"{path}.{name}") for name, p in value.named_parameters())
    elif isinstance(value, dict | list | tuple) and depth < _NESTED:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from _leaves(f"{path}[{key!r}]", part, depth + 1)


def made_of(value: Tensor) -> list[nn.Parameter]:
    """The only leaf of ``nn.Parameter(...) * 0.1``: what is kept is a tensor made of it, and nobody has the weight.

    What more than a few ops have made is a result of the network that is kept, and no weight.
    """
    leaves, stack, ops = [], [value.grad_fn], 0
    while stack and ops <= _NESTED:
        node = stack.pop()
        if node is None:
            continue
        variable = getattr(node, "variable", None)
        leaves += [variable] if variable is not None else []
        ops += variable is None
        stack.extend(source for source, _ in node.next_functions)
    whole = not stack and len(leaves) == 1
    return [leaf for leaf in leaves if whole and isinstance(leaf, nn.Parameter)]
