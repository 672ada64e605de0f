"""The gradients of parameters in whatever form they come, each as one plain tensor that can be read and scaled.

Sparse ones are their coalesced values, complex ones pairs of reals, distributed ones this process's part.  Where that
cannot share memory with ``.grad`` (uncoalesced, conjugated, expanded, partial sums), a substitute takes the place of
``.grad`` when, and only when, it is written.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unvanish.torch.clip.shards import Shards, local_part
from unvanish.torch.probe.naming import names_of

Parameters = nn.Module | Tensor | Iterable[Tensor] | Iterable[tuple[str, Tensor]]

_STRIDED = torch.strided
_REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


@dataclass(slots=True, eq=False)
class Gradient:
    """One gradient: ``grad`` without partial sums, coalesced; ``data``, its numbers as a real, strided tensor."""

    name: str | int
    parameter: Tensor
    grad: Tensor
    data: Tensor
    substitute: Tensor | None = None
    shards: Shards | None = None
    sharing: tuple[Tensor, ...] = ()
    norm: float = field(default=0.0, init=False)
    nonfinite: int = field(default=0, init=False)
    smallest: float = field(default=0.0, init=False)  # entry of this process's part, at most 0
    largest: float = field(default=0.0, init=False)  # at least 0

    def commit(self) -> None:
        """Show what was written into ``data`` to the user."""
        if self.substitute is not None:
            for owner in (self.parameter, *self.sharing):
                owner.grad = self.substitute
            self.substitute = None

    def __str__(self) -> str:
        who = repr(self.name) if isinstance(self.name, str) else f"number {self.name} of the parameters given"
        return f"{who}, shape {tuple(self.parameter.shape)}"


def gather(parameters: Parameters) -> list[Gradient]:
    """All gradients there are, in order, each once, however many parameters share it."""
    found: dict[object, Gradient] = {}  # by place in memory: another tensor object may be the same memory
    special: dict[int, Gradient] = {}
    for name, parameter in _named(parameters):
        grad = parameter.grad
        if grad is None or not (numel := grad.numel()):
            continue
        if _is_plain(grad, numel) and (address := grad.data_ptr()):
            if (address, numel) not in found:
                found[address, numel] = Gradient(name, parameter, grad, grad)
        elif id(grad) in special:
            special[id(grad)].sharing += (parameter,)
        else:
            gradient = special[id(grad)] = _gradient(name, parameter, grad)
            found.setdefault(_place(gradient), gradient)
    return list(found.values())


def _is_plain(grad: Tensor, numel: int) -> bool:
    """Numbers that can be read and written where they are, in one piece."""
    plain = type(grad) is Tensor and grad.dtype in _REAL and grad.layout is _STRIDED and grad.is_contiguous()
    return plain and not (numel == 1 and grad.is_neg())  # more than one are not in one piece then


def _place(gradient: Gradient) -> object:
    """Equal for gradients that share their memory."""
    address = 0 if gradient.shards or gradient.data.is_meta else gradient.data.data_ptr()
    return (address, gradient.data.numel()) if address else id(gradient.grad)


def _named(parameters: Parameters) -> Iterable[tuple[str | int, Tensor]]:
    if isinstance(parameters, nn.Module):
        names = names_of(parameters).parameters
        return [(names[id(parameter)], parameter) for parameter in parameters.parameters()]
    if isinstance(parameters, Tensor):
        return [(0, parameters)]
    if not isinstance(parameters, Iterable):
        raise ValueError(
            f"the parameters are a {type(parameters).__name__}. Expected a module, tensors or (name, tensor) pairs. "
            "Pass model, model.parameters() or model.named_parameters()."
        )
    pairs = [_pair(number, item) for number, item in enumerate(parameters)]
    if not pairs and isinstance(parameters, Iterator):
        message = "the generator of parameters was empty: was it used up before? Pass list(model.parameters())."
        warnings.warn(message, stacklevel=6)
    return pairs


def _pair(number: int, item: Tensor | tuple[str, Tensor]) -> tuple[str | int, Tensor]:
    if isinstance(item, Tensor):
        return number, item
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Tensor):
        return item
    raise ValueError(
        f"item {number} of the parameters is a {type(item).__name__}. Expected a tensor or a (name, tensor) pair. "
        "Pass model, model.parameters() or model.named_parameters()."
    )


def _gradient(name: str | int, parameter: Tensor, grad: Tensor) -> Gradient:
    substitute: Tensor | None
    part, substitute, shards = local_part(grad)
    data, replaced = _plain(part)
    if replaced is not None:
        assert shards is None, "a part of a distributed tensor is dense and owns its memory"
        substitute = replaced
    gradient = Gradient(name, parameter, grad if substitute is None else substitute, data, substitute, shards)
    if data.layout is not _STRIDED:
        raise ValueError(
            f"the gradient of {gradient} has layout {data.layout}. Expected a dense or a sparse one. "
            "Convert it, or leave this parameter out."
        )
    return gradient


def _plain(grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """(real strided numbers, what has to become ``.grad`` if they are written)."""
    substitute = None
    if grad.is_sparse:
        if not grad.is_coalesced():
            grad = substitute = grad.coalesce()
        data = grad._values()
    elif grad.layout in _COMPRESSED:
        data = grad.values()
    elif grad.is_conj() or grad.is_neg():
        data = substitute = grad.resolve_conj().resolve_neg()
    elif grad._is_zerotensor() or any(
        stride == 0 and size > 1 for stride, size in zip(grad.stride(), grad.shape, strict=True)
    ):
        data = substitute = grad.clone(memory_format=torch.contiguous_format)  # an expanded tensor cannot be written
    else:
        data = grad
    return torch.view_as_real(data) if data.is_complex() else data, substitute
