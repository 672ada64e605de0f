"""The gradient over time: what still reaches an input ``t`` steps before the loss.

Fused kernels (cuDNN, oneDNN) show no time steps in the graph, and the weights' gradient is a sum over time that hides
vanishing.  The gradient with respect to the layer's *input* has a time axis, whatever the kernel.  Loops written by
hand are read from the graph: one parameter used again and again, each time further down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from unvanish.torch.probe.cells import Kernel, state_norms
from unvanish.types import Site, TimeProfile

_LOOP = 4  # uses of one parameter, each below the next, that make a loop over time


class TimeWatch:
    """Measures dL/dx_t at every recurrent module of the network while a probe is active."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.leaves: set[int] = set()
        self._names = names
        self._kept: list[Tensor] = []
        self._handles: list[RemovableHandle] = []
        self._kernels: dict[str, Kernel] = {}
        self._into: dict[str, list[float]] = {}
        self._from: dict[str, list[float]] = {}
        self._ops: dict[str, str] = {}

    def enter(self, module: nn.RNNBase, args: Any) -> Any:
        """Pre-hook: ask for the gradient of the layer's input, as a leaf where the input needed none."""
        if not args or not torch.is_grad_enabled():
            return None
        packed = args[0] if isinstance(args[0], PackedSequence) else None
        data = args[0] if packed is None else packed.data
        if not isinstance(data, Tensor) or not data.is_floating_point():
            return None
        leaf = data if data.requires_grad else data.detach().requires_grad_()
        name = self._names[id(module)]
        self._ops[name] = type(module).__name__.lower()
        self.leaves.add(id(leaf))
        self._kept.append(leaf)
        self._handles.append(leaf.register_hook(_store(self._into, name, _time_axis(module, data, packed))))
        kernel = Kernel.of(module, data, args[1] if len(args) > 1 else None) if packed is None else None
        self._kernels.pop(name, None)
        if kernel is not None:
            self._kernels[name] = kernel
        if leaf is data:
            self.leaves.discard(id(leaf))
            return None
        return (leaf if packed is None else packed._replace(data=leaf), *args[1:])

    def leave(self, module: nn.RNNBase, output: Any) -> None:
        """Hook: where does the loss read this layer's outputs directly?"""
        if not isinstance(output, tuple):
            return
        packed = output[0] if isinstance(output[0], PackedSequence) else None
        data = output[0] if packed is None else packed.data
        if isinstance(data, Tensor) and data.requires_grad:
            name = self._names[id(module)]
            self._handles.append(data.register_hook(_store(self._from, name, _time_axis(module, data, packed))))
            if name in self._kernels:
                self._kernels[name].watch(output)

    def profiles(self, sites: tuple[Site, ...]) -> tuple[TimeProfile, ...]:
        """Profiles of the recurrent modules, then of the loops found in the graph."""
        modules = [self._profile(name, norms) for name, norms in self._into.items()]
        covered = set(self._into)
        loops = [profile for profile in _loops(sites) if not _inside(profile.name, covered)]
        for handle in self._handles:
            handle.remove()
        self._kept.clear()
        self._kernels.clear()
        return (*modules, *loops)

    def _profile(self, name: str, norms: list[float]) -> TimeProfile:
        read = self._from.get(name)
        injected = None if not read else sum(value > 0 for value in read) / len(read)
        states = state_norms(self._kernels[name]) if name in self._kernels else None
        by_state = tuple(map(_log, states or ()))
        return TimeProfile(name, self._ops[name], tuple(map(_log, norms)), _padded(norms), injected, by_state)


def _inside(name: str, covered: set[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in covered)


def _store(
    store: dict[str, list[float]], name: str, by_time: Callable[[Tensor], Tensor]
) -> Callable[[Tensor | None], None]:
    def hook(gradient: Tensor | None) -> None:
        if gradient is not None:  # nothing read this output
            store[name] = by_time(gradient.detach()).tolist()

    return hook


def _time_axis(module: nn.RNNBase, data: Tensor, packed: PackedSequence | None) -> Callable[[Tensor], Tensor]:
    """A function from the gradient to its float64 norm at each time step."""
    if packed is not None:
        sizes: list[int] = packed.batch_sizes.tolist()
        return lambda g: torch.stack([_norm(part.reshape(1, -1))[0] for part in g.split(sizes)])
    axis = 1 if module.batch_first and data.ndim == 3 else 0
    return lambda g: _norm(g.movedim(axis, 0).reshape(g.shape[axis], -1))


def _norm(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows.to(torch.float64), dim=1)
    return norms


def _log(norm: float) -> float:
    return -math.inf if norm == 0 else math.log(norm) if norm > 0 else math.nan


def _padded(norms: list[float]) -> int:
    """Trailing steps with exactly zero gradient."""
    count = 0
    while count < len(norms) and norms[-1 - count] == 0:
        count += 1
    return count if count < len(norms) else 0


def _loops(sites: tuple[Site, ...]) -> list[TimeProfile]:
    """Loops in the graph: every use of a parameter lies below the next one."""
    uses: dict[str, list[Site]] = {}
    for site in sites:
        if site.parameter is not None and site.kind in ("linear", "convolution") and site.log_grad_out is not None:
            uses.setdefault(site.parameter, []).append(site)
    profiles: dict[str, TimeProfile] = {}
    for calls in uses.values():
        serial = all(a.depth < b.depth for a, b in pairwise(calls))
        if len(calls) < _LOOP or not serial:
            continue
        logs = tuple(site.log_grad_out for site in calls if site.log_grad_out is not None)
        padded = _padded([math.exp(log) if log > -700 else float(log > -math.inf) for log in logs])
        profiles.setdefault(calls[0].name, TimeProfile(calls[0].name, "loop", logs, padded))
    return list(profiles.values())
