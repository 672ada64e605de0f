"""A window of full sight: opened before a probed step, closed after it. Outside of it no module hook is installed."""

from __future__ import annotations

import math
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils.hooks import RemovableHandle

from unvanish.torch.probe.activations import Units
from unvanish.torch.probe.graph import Graph, read_graph
from unvanish.torch.probe.norms import dense, norms
from unvanish.torch.probe.probe import Probe
from unvanish.torch.probe.scopes import Call, tensors_in
from unvanish.torch.rehearsal.objective import batch_size
from unvanish.torch.run.birth import find_birth
from unvanish.torch.run.frames import keywords_of_call
from unvanish.torch.run.outputs import Outputs
from unvanish.torch.run.quiet import Silence, unheard
from unvanish.torch.run.roots import Roots, is_loss
from unvanish.torch.run.trial import Batch, batch_of
from unvanish.torch.views.observe import Before, before_backward
from unvanish.types import LossView, NonFinite, Site, TimeProfile

_MOST_CALLS = 200_000  # module calls kept while no backward pass comes: a program that only infers


Gradients = Mapping[int, Tensor | None]  # by the parameter's identity
_Entered = tuple[Call, Any, dict[str, Any]]  # a call at top level, its arguments and its keyword arguments


@dataclass(slots=True)
class Seen:
    """One backward pass of the user, watched.

    ``norms`` = ||gradient|| per leaf right after it, unscaled; ``kept`` = the same of what was there before it;
    ``apart`` = its gradients were not added up in ``.grad``; ``by_data`` = it goes back to the data too.
    """

    clock: int
    leaves: dict[int, Tensor]
    before: Before
    calls: list[Call]
    batch_size: int | None
    scale: float | None
    kept: dict[int, float]
    sites: tuple[Site, ...] = ()
    units: dict[int, Units] = field(default_factory=dict)
    times: tuple[TimeProfile, ...] = ()
    norms: dict[int, float] = field(default_factory=dict)
    apart: bool = False
    by_data: bool = False
    birth: NonFinite | None = None
    batch: Batch | None = None


@dataclass(slots=True)
class Pending:
    """Between the start and the end of the user's ``backward()``."""

    probe: Probe
    seen: Seen


class Window:
    """Forward hooks on every module of the process, and a probe on every backward pass, until ``close``."""

    def __init__(
        self,
        roots: Roots,
        outputs: Outputs,
        position: Callable[[Tensor], int | None],
        fail: Callable[[], object],
        *,
        first: bool,
    ) -> None:
        """Open it.

        Args:
            roots: the networks known so far; new ones are adopted as they are called.
            outputs: told of what they put out.
            position: place of a tensor among the parameters of its optimizer; None where no optimizer holds it.
            fail: told, in the handling of it, of an error of ours in the user's forward pass.
            first: an optimizer has made no step yet; its first batch is kept to be tried again.
        """
        roots.refresh()
        self.seen: list[Seen] = []
        self._roots, self._outputs = roots, outputs
        self._position, self._fail, self.first = position, fail, first
        self._scopes = Probe(roots.names, None).scopes
        self._depth = self._ignored = 0
        self._entered: list[_Entered] = []
        self._sized = -1
        self._target: Tensor | None = None
        self._owner = (os.getpid(), threading.get_ident())
        self._handles: list[RemovableHandle | Silence] = [
            Silence("Using `torch.compile\\(module\\)` when there are global hooks"),
            nn_module.register_module_forward_pre_hook(self._guarded(self._entering)),
            nn_module.register_module_forward_hook(self._guarded(self._leaving), always_call=True),
        ]

    def close(self) -> None:
        """Take the hooks away and let go of all tensors."""
        for handle in self._handles:
            handle.remove()
        self._entered.clear()
        self.seen.clear()
        self._target = self._scopes.output = None

    def _guarded(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """What goes wrong with us, a warning made an error too, must not end the user's forward pass."""

        def guarded(*args: Any) -> Any:
            try:
                with unheard():
                    return hook(*args)
            except Exception:
                self._fail()
                return None

        return guarded

    def _elsewhere(self) -> bool:
        """In a worker process, another thread, or under the compiler."""
        return (os.getpid(), threading.get_ident()) != self._owner or torch.compiler.is_compiling()

    def _entering(self, module: nn.Module, args: Any) -> Any:
        if self._elsewhere():
            return None
        if self._ignored:
            self._ignored += 1
            return None
        if self._depth:
            self._depth += 1
            return self._scopes.enter(module, args)
        return self._enter_root(module, args)

    def _enter_root(self, module: nn.Module, args: Any) -> Any:
        """A call at top level: of a network in training, or of something to look away from."""
        if is_loss(module):
            self._target = next(tensors_in(args[1:]), None)
        if is_loss(module) or torch.is_inference_mode_enabled() or not (torch.is_grad_enabled() or module.training):
            self._ignored = 1
            return None
        if id(module) not in self._roots.names.modules:
            self._roots.adopt(module)
        self._outputs.look_back(self._scopes, self._roots.names)
        keywords = keywords_of_call()
        inputs = _shown(args, keywords)
        if self._sized != len(self.seen) and (size := batch_size(inputs)) is not None:
            self._sized, self._scopes.batch_size, self._scopes.moments.batch_size = len(self.seen), size, size
        if len(self._scopes.calls) > _MOST_CALLS:
            self._scopes.calls.clear()
        self._depth = 1
        changed = self._scopes.enter(module, args)
        self._entered = [*self._entered[-31:], (self._scopes.calls[-1], args, keywords)]
        return changed

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._elsewhere():
            return
        if self._ignored:
            self._ignored -= 1
            if not self._ignored and is_loss(module):
                self._outputs.look(output, self._scopes, self._roots.names)
            return
        self._depth -= 1
        self._scopes.leave(module, args, output)
        if not self._depth:
            self._outputs.look(output, self._scopes, self._roots.names)

    def begin(self, loss: Tensor, scale: float | None, clock: int) -> Pending:
        """Hook the graph of ``loss``; the user's backward pass comes next."""
        self._outputs.used()
        graph = read_graph(loss, set())
        leaves = {key: leaf for key, leaf in graph.leaves.items() if leaf.requires_grad}
        data = {key: leaf for key, leaf in leaves.items() if self._is_data(leaf)}
        parameters = {key: leaf for key, leaf in leaves.items() if key not in data}
        self._adopt_loose(list(parameters.values()))
        probe = Probe(self._roots.names, self._scopes.batch_size, tuple(data.values()))
        probe.scopes = self._scopes
        mine = self._calls_in([vertex.number for vertex in graph.vertices])
        before = before_backward(probe, loss, self._inputs(mine), self._target)
        kept = gradient_norms({key: leaf.grad for key, leaf in parameters.items()}, scale)
        seen = Seen(clock, parameters, before, list(self._scopes.calls), self._batch_size(before), scale, kept)
        seen.by_data = bool(data)
        if self.first and len(mine) == 1 and before.graph is not None:
            seen.batch = self._batch(mine[0], before.graph, before.loss)
        if not math.isfinite(before.loss.value):
            seen.birth = find_birth(before.graph, self._scopes, self._roots.names)
        return Pending(probe, seen)

    def end(self, pending: Pending, gradients: Gradients) -> Seen:
        """The user's backward pass is over: read what the hooks measured, and what it left as ``gradients``."""
        seen, shift = pending.seen, math.log(pending.seen.scale or 1.0)
        sites, seen.units = pending.probe.sites() if pending.probe.graph is not None else ((), {})
        seen.sites = tuple(_unscaled(site, shift) for site in sites) if shift else sites
        times = self._scopes.times.profiles(seen.sites)
        seen.times = tuple(replace(t, log_grads=tuple(g - shift for g in t.log_grads)) for t in times)
        seen.norms = gradient_norms(gradients, seen.scale)
        self.seen = [*self.seen[-63:], seen]
        self._target = self._scopes.output = None
        return seen

    def _adopt_loose(self, parameters: list[Tensor]) -> None:
        """Name the parameters that belong to no module, in the order of their optimizer."""
        loose = [
            (at, p)
            for p in parameters
            if id(p) not in self._roots.names.parameters and (at := self._position(p)) is not None
        ]
        for _, parameter in sorted(loose, key=lambda pair: pair[0]):
            self._roots.adopt_leaf(parameter)

    def _is_data(self, leaf: Tensor) -> bool:
        """A leaf that asks for its gradient and is nobody's parameter: coordinates of a PINN, an adversarial input."""
        known = id(leaf) in self._roots.names.parameters or isinstance(leaf, nn.Parameter)
        return not known and self._position(leaf) is None

    def _calls_in(self, numbers: list[int]) -> list[_Entered]:
        """The calls at top level that made nodes of this graph."""
        ordered = sorted(numbers)
        return [
            one for one in self._entered if bisect_left(ordered, one[0].end or 0) > bisect_left(ordered, one[0].start)
        ]

    def _inputs(self, mine: list[_Entered]) -> Any:
        """What the network was called with for this loss: the first call in its graph that was fed plain data."""
        shown = [_shown(args, keywords) for _, args, keywords in (mine or self._entered[-1:])]
        return next((one for one in shown if not any(t.grad_fn for t in tensors_in(one))), ())

    def _batch(self, entered: _Entered, graph: Graph, loss: LossView) -> Batch | None:
        """Enough of this call to make it again."""
        call, args, keywords = entered
        if call is not self._entered[-1][0] or bool(args) == bool(keywords):
            return None
        inputs = keywords or (args[0] if len(args) == 1 else args)
        return batch_of(call.module, inputs, self._scopes.output, graph, loss, self._target)

    def _batch_size(self, before: Before) -> int | None:
        if self._scopes.batch_size is not None:
            return self._scopes.batch_size
        return before.loss.target_shape[0] if before.loss.target_shape else None


def _shown(args: Any, keywords: dict[str, Any]) -> Any:
    """The inputs of a call as a report shows them: labels are none."""
    named = {key: value for key, value in keywords.items() if key != "labels"}
    return {**{str(i): value for i, value in enumerate(args)}, **named} if named else args


def gradient_norms(gradients: Gradients, scale: float | None) -> dict[int, float]:
    """||gradient|| of each parameter that has one, divided by the loss scale."""
    known = {key: dense(gradient) for key, gradient in gradients.items() if gradient is not None and gradient.numel()}
    return {key: norms([gradient])[0] / (scale or 1.0) for key, gradient in known.items()}


def _unscaled(site: Site, shift: float) -> Site:
    out = None if site.log_grad_out is None else site.log_grad_out - shift
    into = None if site.log_grad_in is None else site.log_grad_in - shift
    return replace(site, log_grad_out=out, log_grad_in=into)
