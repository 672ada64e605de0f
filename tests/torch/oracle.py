"""Slow float64 oracles: what a probe must say, found by retain_grad, autograd.grad and plain NumPy."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.probe.naming import names_of
from unvanish.torch.probe.probe import Probe
from unvanish.torch.probe.scopes import tensors_in
from unvanish.types import Site

Run = Callable[[nn.Module], Tensor]


def watch(
    model: nn.Module, run: Run, batch_size: int | None = None, inputs: tuple[Tensor, ...] = ()
) -> tuple[Site, ...]:
    """Sites of one probed pass; the gradients stay in ``.grad``."""
    return watch_all(model, run, batch_size, inputs)[0]


def watch_all(
    model: nn.Module, run: Run, batch_size: int | None = None, inputs: tuple[Tensor, ...] = ()
) -> tuple[tuple[Site, ...], Probe]:
    probe = Probe(names_of(model), batch_size, inputs)
    with probe.watching():
        loss = run(model)
    probe.attach(loss)
    loss.backward()
    sites, _ = probe.sites()
    return sites, probe


def site(sites: tuple[Site, ...], name: str, op: str | None = None, call: int = 0) -> Site:
    found = [s for s in sites if s.name == name and (op is None or s.op == op) and s.call == call]
    assert len(found) == 1, f"{name} {op} call {call}: {[(s.name, s.op, s.call) for s in sites]}"
    return found[0]


def ln(tensor: Tensor) -> float:
    """ln of the L2 norm, in float64, scaled."""
    wide = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    wide = wide.to(torch.float64)
    largest = float(wide.abs().max())
    return -math.inf if largest == 0 else math.log(largest) + math.log(float((wide / largest).pow(2).sum().sqrt()))


def output_gradients(model: nn.Module, run: Run) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Module name -> (output, dL/d output) of every call, by autograd.grad; ``model`` is a float64 copy."""
    seen: list[tuple[str, Tensor]] = []
    handles = []
    for name, module in model.named_modules():

        def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            seen.extend((name, tensor) for tensor in tensors_in(output) if tensor.requires_grad)

        handles.append(module.register_forward_hook(keep))
    loss = run(model)
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(loss, [tensor for _, tensor in seen], allow_unused=True)
    found: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for (name, tensor), gradient in zip(seen, gradients, strict=True):
        if gradient is not None:
            found[name].append((tensor.detach(), gradient))
    return found


def double(model: nn.Module) -> nn.Module:
    """A float64 copy, without the tensors that a forward pass left in attributes."""
    left = {id(v): None for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and v.grad_fn}
    return copy.deepcopy(model, left).double()


def close(measured: float | None, expected: float, tolerance: float = 1e-4) -> None:
    assert measured is not None, f"not observed, expected {expected}"
    assert math.isclose(measured, expected, rel_tol=1e-5, abs_tol=tolerance), f"measured {measured}, oracle {expected}"


def check_modules(model: nn.Module, run: Run, run_double: Run, tolerance: float = 1e-4) -> tuple[Site, ...]:
    """Gradient at the output of every leaf module against the oracle; returns the sites."""
    expected = output_gradients(double(model), run_double)
    sites = watch(model, run)
    last = {}
    for s in sites:
        last[s.name, s.call] = s
    for name, module in model.named_modules():
        if name and not list(module.children()):
            for call, (value, gradient) in enumerate(expected.get(name, [])):
                found = last.get((name, call))
                if found is not None and found.shape == tuple(value.shape):
                    close(found.log_grad_out, ln(gradient), tolerance)
    return sites
