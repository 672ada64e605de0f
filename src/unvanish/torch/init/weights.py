"""The weights of a model that are a user's to initialise: found by module, with the layout of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from unvanish.torch.init.matrices import Layout

Kept = str | nn.Module | Tensor
Keep = Kept | Iterable[Kept]


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight matrix (or stack of them) with its bias.

    Attributes:
        name: of the parameter, as in ``model.named_parameters()``.
        tensor: the parameter, or the part of it that is one matrix (the query's third of an ``in_proj_weight``).
        bias: the bias that goes with it, None where there is none or it is not to be touched.
        layout: where inputs and outputs lie.
        role: "recurrent" for hidden-to-hidden weights, "attention" for projections in an attention layer.
    """

    name: str
    tensor: Tensor
    bias: Tensor | None
    layout: Layout
    role: Literal["plain", "recurrent", "attention"] = "plain"


def protected(model: nn.Module, keep: Keep) -> set[int]:
    """Ids of the parameters that must stay: frozen ones, and what the user names, by name, module or tensor.

    Raises:
        ValueError: something that the model does not have, or that is no name, module or parameter.
    """
    kept = {id(p) for p in model.parameters() if not p.requires_grad}
    parameters, modules = dict(model.named_parameters(remove_duplicate=False)), dict(model.named_modules())
    own = {id(p) for p in parameters.values()}
    for item in _items(keep):
        if isinstance(item, str):
            found = [parameters[item]] if item in parameters else _parameters(modules.get(item))
        else:
            found = [item] if isinstance(item, Tensor) else _parameters(item)
        inside = item in modules if isinstance(item, str) else any(item is module for module in modules.values())
        if not (inside or found) or not own.issuperset(map(id, found)):
            raise ValueError(_unknown(item, list(parameters)))
        kept |= {id(p) for p in found}
    return kept


def _items(keep: Keep) -> list[Kept]:
    if isinstance(keep, (str, nn.Module, Tensor)):
        return [keep]
    if not isinstance(keep, Iterable):
        raise ValueError(
            f"keep={keep!r} says nothing to keep. Expected names, modules or parameters of the model, one or several. "
            "Leave keep out to keep only what is frozen."
        )
    return list(keep)


def _parameters(module: object) -> list[Tensor]:
    return list(module.parameters()) if isinstance(module, nn.Module) else []


def _unknown(item: object, names: list[str]) -> str:
    if isinstance(item, str):
        what = f"parameter or module named {item!r}"
    elif isinstance(item, Tensor):
        what = f"parameter that is this tensor of shape {tuple(item.shape)}"
    elif isinstance(item, nn.Module):
        what = f"module that is this {type(item).__name__}"
    else:
        what = f"parameter or module {item!r}"
    return (
        f"keep: the model has no {what}. Expected names as in model.named_parameters() or model.named_modules(), or "
        f"these parameters and modules themselves. Its first names are {', '.join(names[:4])}."
    )


def watched(model: nn.Module) -> nn.Module:
    """The model that is run to be watched: torch.compile's wrapper hides its ops, what it wraps shows them."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def weights_of(model: nn.Module, keep: Keep = ()) -> list[Weight]:
    """All weights of linear, convolution, recurrent and attention modules that may be changed, each tensor once."""
    kept, seen = protected(model, keep), set[tuple[int, int]]()
    found: list[Weight] = []
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            continue  # its weight is computed from other parameters, which have a meaning of their own
        for weight in _of_module(module, f"{prefix}." if prefix else ""):
            owner = weight.tensor._base if weight.tensor._base is not None else weight.tensor
            part = (id(owner), int(weight.tensor.storage_offset()))
            if id(owner) not in kept and part not in seen:
                seen.add(part)
                found.append(_without_kept_bias(weight, kept))
    return found


def _without_kept_bias(weight: Weight, kept: set[int]) -> Weight:
    bias = weight.bias
    if bias is None or id(bias._base if bias._base is not None else bias) not in kept:
        return weight
    return Weight(weight.name, weight.tensor, None, weight.layout, weight.role)


def _of_module(module: nn.Module, prefix: str) -> Iterator[Weight]:
    if isinstance(module, nn.Linear):
        yield Weight(f"{prefix}weight", module.weight, module.bias, Layout(tuple(module.weight.shape)))
    elif isinstance(module, _ConvNd):
        yield Weight(f"{prefix}weight", module.weight, module.bias, layout_of_convolution(module))
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        yield from recurrent_weights(module, prefix)
    elif isinstance(module, nn.MultiheadAttention):
        yield from attention_weights(module, prefix)


def layout_of_convolution(module: _ConvNd) -> Layout:
    """Layout of a convolution module's weight, transposed or not."""
    return Layout(tuple(module.weight.shape), module.groups, isinstance(module, _ConvTransposeNd), tuple(module.stride))


def recurrent_weights(module: nn.RNNBase | nn.RNNCellBase, prefix: str) -> Iterator[Weight]:
    """One block of rows for each gate: a gate's matrix acts on its own, and so has fans of its own."""
    hidden = module.hidden_size
    for name, tensor in module.named_parameters(recurse=False):
        if name.startswith("weight_ih") or name.startswith("weight_hh"):
            bias = getattr(module, name.replace("weight", "bias"), None)
            role: Any = "recurrent" if name.startswith("weight_hh") else "plain"
            for gate in range(tensor.shape[0] // hidden):
                rows = slice(gate * hidden, (gate + 1) * hidden)
                part = tensor[rows]
                yield Weight(
                    f"{prefix}{name}", part, bias[rows] if bias is not None else None, Layout(tuple(part.shape)), role
                )
        elif name.startswith("weight_hr"):
            yield Weight(f"{prefix}{name}", tensor, None, Layout(tuple(tensor.shape)))


def attention_weights(module: nn.MultiheadAttention, prefix: str) -> Iterator[Weight]:
    """Query, key and value each with the fans of its own matrix."""
    width, bias = module.embed_dim, module.in_proj_bias
    for number, name in enumerate(("q_proj_weight", "k_proj_weight", "v_proj_weight")):
        rows = slice(number * width, (number + 1) * width)
        whole = module.in_proj_weight
        tensor = whole[rows] if whole is not None else getattr(module, name)
        part = bias[rows] if bias is not None else None
        full = f"{prefix}in_proj_weight" if whole is not None else f"{prefix}{name}"
        yield Weight(full, tensor, part, Layout(tuple(tensor.shape)), "attention")
    # out_proj is a Linear of its own, and found as one
