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
    unknown = {key: p for key, p in leaves.items() if key not in names.parameters and isinstance(p, nn.Parameter)}
    if not unknown:  # as a rule
        return ()
    known = held(calls, unknown).keys() | {
        id(p) for group in (optimizer.param_groups if optimizer else ()) for p in group["params"]
    }
    return tuple(p for key, p in unknown.items() if key not in known)


def held(calls: Sequence[Call], unknown: Mapping[int, Tensor]) -> dict[int, str]:
    """Weights the model holds without having registered them: id -> path, such as ``blocks[0].weight``.

    A leaf that no attribute of the model leads to is data that asks for a gradient (a PINN's points), not a weight.
    """
    found: dict[int, str] = {}
    for call in calls if unknown else ():
        for attribute, value in vars(call.module).items():
            if not attribute.startswith("_"):
                prefix = f"{call.name}.{attribute}" if call.name else attribute
                for tensor, path in tensors_at(prefix, value):
                    found.update({id(one): path for one in (tensor, *made_of(tensor)) if id(one) in unknown})
    return found


def tensors_at(path: str, value: object, depth: int = 0) -> Iterator[tuple[Tensor, str]]:
    """Tensors inside modules, lists and dicts, with the Python expression that leads to them."""
    if isinstance(value, Tensor):
        yield value, path
    elif isinstance(value, nn.Module):
        yield from ((p, f"{path}.{name}") for name, p in value.named_parameters())
    elif isinstance(value, dict | list | tuple) and depth < _NESTED:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from tensors_at(f"{path}[{key!r}]", part, depth + 1)


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
