"""The gradient over time: what still reaches an input ``t`` steps before the loss.

Fused kernels (cuDNN, oneDNN) show no time steps in the graph, and the weights' gradient is a sum over time that hides
vanishing.  The gradient with respect to the layer's *input* has a time axis, whatever the kernel.  Loops written by
hand are read from the graph: one parameter used again and again, each time further down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from unvanish.torch.probe.cells import Kernel, state_norms
from unvanish.torch.probe.scopes import tensors_in
from unvanish.types import Site, TimeProfile

_LOOP = 4  # uses of one parameter, each below the next, that make a loop over time
_MOST = 4096  # calls of one layer that are kept
_FAR = 2000  # nodes between two calls of a layer that are looked through

_Read = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class _Call:
    """One call of a recurrent layer; ``follows``: it was given the state that the call before put out."""

    op: str
    length: int = 0
    into: list[float] | None = None  # ||dL/dx_t||, once the backward pass has come by
    out: list[float] | None = None  # the same of what the loss reads of its output directly
    kernel: Kernel | None = None
    given: frozenset[Any] = frozenset()  # nodes that made the state it begins with
    nodes: frozenset[Any] = frozenset()  # those that made its outputs
    follows: bool = False

    def norms(self) -> list[float]:
        """||dL/dx_t||; nothing arrived where the backward pass did not come by."""
        return self.into or [0.0] * self.length


class TimeWatch:
    """Measures dL/dx_t at every recurrent module of the network while a probe is active."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.leaves: set[int] = set()
        self._names = names
        self._kept: list[Tensor] = []
        self._handles: list[RemovableHandle] = []
        self._calls: dict[str, list[_Call]] = {}

    def enter(self, module: nn.RNNBase, args: Any) -> Any:
        """Pre-hook: ask for the gradient of the layer's input, as a leaf where the input needed none."""
        if not torch.is_grad_enabled():
            return None
        call = _Call(type(module).__name__.lower(), given=_nodes(tensors_in(args[1:])))
        calls = self._calls.setdefault(self._names[id(module)], [])
        calls.append(call)
        del calls[:-_MOST]
        packed = args[0] if args and isinstance(args[0], PackedSequence) else None
        data = (args[0] if packed is None else packed.data) if args else None
        if not isinstance(data, Tensor) or not data.is_floating_point():
            return None  # among them an input by keyword, which a hook for all modules is not shown
        leaf = data if data.requires_grad else data.detach().requires_grad_()
        self.leaves.add(id(leaf))
        self._kept.append(leaf)
        call.length, by_time = _time_axis(module, data, packed)
        self._handles.append(leaf.register_hook(_store(call, "into", by_time)))
        call.kernel = Kernel.of(module, data, args[1] if len(args) > 1 else None) if packed is None else None
        if leaf is data:
            self.leaves.discard(id(leaf))
            return None
        return (leaf if packed is None else packed._replace(data=leaf), *args[1:])

    def leave(self, module: nn.RNNBase, output: Any) -> None:
        """Hook: where does the loss read this layer's outputs directly, and did it go on from the call before?"""
        if not isinstance(output, tuple):
            return
        packed = output[0] if isinstance(output[0], PackedSequence) else None
        data = output[0] if packed is None else packed.data
        if not isinstance(data, Tensor) or not data.requires_grad:
            return
        *before, call = self._calls[self._names[id(module)]][-2:]
        call.nodes = _nodes((data, *tensors_in(output[1])))
        call.follows = bool(before) and _reaches(call.given, before[-1].nodes)
        self._handles.append(data.register_hook(_store(call, "out", _time_axis(module, data, packed)[1])))
        if call.kernel is not None:
            call.kernel.watch(output)

    def profiles(self, sites: tuple[Site, ...]) -> tuple[TimeProfile, ...]:
        """Profiles of the recurrent modules, then of the loops found in the graph."""
        chains = {name: _longest(calls) for name, calls in self._calls.items()}
        modules = [_profile(name, chain) for name, chain in chains.items() if any(map(_counts, chain))]
        covered = {profile.name for profile in modules if profile.log_grads}
        loops = [profile for profile in _loops(sites) if not _inside(profile.name, covered)]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._kept.clear()
        self._calls.clear()
        return (*modules, *loops)


def _nodes(tensors: Iterable[Tensor]) -> frozenset[Any]:
    return frozenset(tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None)


def _counts(call: _Call) -> bool:
    """Was its gradient measured, or could it not be?"""
    return bool(call.into or (call.nodes and not call.length))


def _longest(calls: list[_Call]) -> list[_Call]:
    """Of the sequences that a layer is led through call by call, the one with the most steps."""
    chains: list[list[_Call]] = []
    for call in calls:
        if call.follows and chains:
            chains[-1].append(call)
        else:
            chains.append([call])
    return max(chains, key=lambda chain: sum(call.length for call in chain if call.into))


def _profile(name: str, chain: list[_Call]) -> TimeProfile:
    norms = [norm for call in chain for norm in call.norms()] if any(call.into for call in chain) else []
    read = [norm > 0 for call in chain for norm in call.out or [0.0] * call.length]
    injected = sum(read) / len(read) if any(call.out for call in chain) else None
    states = [state_norms(call.kernel) if call.kernel is not None else None for call in chain]
    by_state = [norm for known in states for norm in known or ()] if all(states) else []
    return TimeProfile(name, chain[0].op, tuple(map(_log, norms)), _padded(norms), injected, tuple(map(_log, by_state)))


def _reaches(nodes: frozenset[Any], wanted: frozenset[Any]) -> bool:
    """Does the graph lead from the state of one call to the outputs of another?  Older nodes lead to none of them."""
    if not nodes.isdisjoint(wanted):
        return True
    oldest = min((node._sequence_nr() for node in wanted), default=0)
    waiting, seen = list(nodes), set(nodes)
    while waiting and len(seen) < _FAR:
        for node, _ in waiting.pop().next_functions:
            if node in wanted:
                return True
            if node is not None and node not in seen and node._sequence_nr() >= oldest:
                seen.add(node)
                waiting.append(node)
    return False


def _inside(name: str, covered: set[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in covered)


def _store(call: _Call, what: str, by_time: _Read) -> Callable[[Tensor | None], None]:
    def hook(gradient: Tensor | None) -> None:
        if gradient is not None:  # nothing read this output
            setattr(call, what, by_time(gradient.detach()).tolist())

    return hook


def _time_axis(module: nn.RNNBase, data: Tensor, packed: PackedSequence | None) -> tuple[int, _Read]:
    """How many steps there are, and a function from the gradient to its float64 norm at each."""
    if packed is not None:
        sizes: list[int] = packed.batch_sizes.tolist()
        return len(sizes), lambda g: torch.stack([_norm(part.reshape(1, -1))[0] for part in g.split(sizes)])
    axis = 1 if module.batch_first and data.ndim == 3 else 0
    return data.shape[axis], lambda g: _norm(g.movedim(axis, 0).reshape(g.shape[axis], -1))


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
