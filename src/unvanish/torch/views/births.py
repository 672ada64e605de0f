"""Where a NaN or Inf was born: the same step run once more with every op checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unvanish.torch.probe.naming import Names
from unvanish.torch.probe.scopes import Scopes, tensors_in
from unvanish.types import NonFinite, Site

# ops that write -inf or inf on purpose (masks) or hand on what others made
_MASKS = ("fill", "full", "where", "tril", "triu", "copy", "clone", "view", "scalar_tensor", "lift", "detach", "empty")


class _Births(TorchDispatchMode):
    """Remembers the first op that made an Inf of finite inputs, or a NaN of inputs without one (inf - inf)."""

    def __init__(self, scopes: Scopes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scopes = scopes
        self.first: tuple[str, str, str] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.first is None and not any(mask in name for mask in _MASKS) and _bad(output):
            inputs = list(tensors_in([*args, *(kwargs or {}).values()]))
            if not any(map(_bad, inputs)) or (_nan(output) and not any(map(_nan, inputs))):
                self.first = (self.scopes.innermost(), name.strip("_"), _describe(inputs))
        return output


def find_forward_birth(names: Names, forward: Callable[[], object], step: int) -> NonFinite | None:
    """Run ``forward`` once with every op checked."""
    scopes = Scopes(names.modules)
    mode = _Births(scopes)
    with scopes.recording(), mode:
        forward()
    if mode.first is None:
        return None
    where, op, detail = mode.first
    return NonFinite(where or op, op, "forward", step, detail)


def find_bad_source(inputs: object, named: Iterable[tuple[str, Tensor]], step: int) -> NonFinite | None:
    """NaN or Inf that was there before any op ran: in the data, or in a parameter."""
    data = find_bad_data(inputs, "input", step)
    if data is not None:
        return data
    for name, parameter in named:
        if _bad(parameter):
            return NonFinite(name, "parameter", "parameter", step, "the weights themselves are not finite")
    return None


def find_bad_data(values: object, where: str, step: int) -> NonFinite | None:
    """NaN or Inf in what the program was given."""
    for position, tensor in enumerate(tensors_in(values)):
        if _bad(tensor):
            count = int((~torch.isfinite(tensor)).sum())
            return NonFinite(where, "data", "input", step, f"{count} of {tensor.numel()} values of tensor {position}")
    return None


def find_backward_birth(sites: tuple[Site, ...], gradients: dict[str, Tensor | None], step: int) -> NonFinite | None:
    """First op, going backward, that got a finite gradient and passed on one that is not."""
    for site in reversed(sites):
        arrived, passed = site.log_grad_out, site.log_grad_in
        if _finite(arrived) and passed is not None and not _finite(passed):
            return NonFinite(site.label, site.op, "backward", step, "its derivative is infinite or undefined here")
    for name, gradient in gradients.items():
        if gradient is not None and _bad(gradient):
            return NonFinite(name, "gradient", "backward", step, "the gradient of this parameter is not finite")
    return None


def _finite(log: float | None) -> bool:
    return log is not None and (math.isfinite(log) or log == -math.inf)


def _bad(value: object) -> bool:
    return any(
        not bool(torch.isfinite(tensor).all())
        for tensor in tensors_in(value)
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout == torch.strided and tensor.numel()
    )


def _nan(value: object) -> bool:
    return any(bool(tensor.isnan().any()) for tensor in tensors_in(value) if tensor.is_floating_point())


def _describe(inputs: list[Tensor]) -> str:
    """The range of what went in, which usually names the bug: log of 0, exp of 1000, a zero divisor."""
    parts = []
    for tensor in (given.detach() for given in inputs[:2]):
        if tensor.is_floating_point() and tensor.numel():
            parts.append(f"{list(tensor.shape)} in [{float(tensor.min()):.4g}, {float(tensor.max()):.4g}]")
    return "its input was " + " and ".join(parts) if parts else ""
