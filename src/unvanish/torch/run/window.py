"""A window of full sight: opened before a probed step, closed after it. Outside of it no module hook is installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from unvanish.torch.probe.graph import Graph, read_graph
from unvanish.torch.probe.probe import Probe
from unvanish.torch.rehearsal.objective import inputs_of
from unvanish.torch.run.batch import Batch, batch_of
from unvanish.torch.run.birth import find_birth
from unvanish.torch.run.forward import Entered, Forward
from unvanish.torch.run.frames import find_owner
from unvanish.torch.run.outputs import Outputs
from unvanish.torch.run.roots import Roots
from unvanish.torch.run.seen import Gradients, Pending, Seen, gradient_norms
from unvanish.torch.views.observe import Before, before_backward
from unvanish.types import LossView, Site


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
            first: as the property.
        """
        roots.refresh()
        self.seen: list[Seen] = []
        self._roots, self._outputs, self._position = roots, outputs, position
        self._forward = Forward(roots, outputs, fail)
        self.first = first

    @property
    def first(self) -> bool:
        """Has an optimizer made no step yet? Then what its first loss was made of is kept, to be tried again."""
        return self._forward.recording

    @first.setter
    def first(self, first: bool) -> None:
        self._forward.recording = first

    def close(self) -> None:
        """Take the hooks away and let go of all tensors."""
        self._forward.close()
        self.seen.clear()

    def begin(self, loss: Tensor, scale: float | None, clock: int) -> Pending:
        """Hook the graph of ``loss``; the user's backward pass comes next."""
        self._outputs.used()
        graph = read_graph(loss, set())
        leaves = {key: leaf for key, leaf in graph.leaves.items() if leaf.requires_grad}
        data = {key: leaf for key, leaf in leaves.items() if self._is_data(leaf)}
        parameters = {key: leaf for key, leaf in leaves.items() if key not in data}
        self._adopt_loose(list(parameters.values()))
        probe = Probe(self._roots.names, None, tuple(data.values()), self._forward.scopes)
        mine = self._forward.calls_in([vertex.number for vertex in graph.vertices])
        before = before_backward(probe, loss, self._forward.inputs(mine), self._forward.target)
        kept = gradient_norms({key: leaf.grad for key, leaf in parameters.items()}, scale)
        seen = Seen(clock, parameters, before, list(self._forward.scopes.calls), self._batch_size(before), scale, kept)
        seen.by_data = bool(data)
        tape = self._forward.recorder.tape(loss)
        if self.first and before.graph is not None:
            seen.batch = self._batch(mine[0], before.graph, before.loss) if len(mine) == 1 else None
            seen.tape = tape if seen.batch is None else None
        if not math.isfinite(before.loss.value):
            seen.birth = find_birth(before.graph, self._forward.scopes, self._roots.names)
        return Pending(probe, seen)

    def end(self, pending: Pending, gradients: Gradients) -> Seen:
        """The user's backward pass is over: read what the hooks measured, and what it left as ``gradients``."""
        seen, shift = pending.seen, math.log(pending.seen.scale or 1.0)
        sites, seen.units = pending.probe.sites() if pending.probe.graph is not None else ((), {})
        seen.sites = tuple(_unscaled(site, shift) for site in sites) if shift else sites
        times = self._forward.scopes.times.profiles(seen.sites)
        seen.times = tuple(replace(t, log_grads=tuple(g - shift for g in t.log_grads)) for t in times)
        seen.norms = gradient_norms(gradients, seen.scale)
        self.seen = [*self.seen[-63:], seen]
        self._forward.used()
        return seen

    def _adopt_loose(self, parameters: list[Tensor]) -> None:
        """Name the parameters that belong to no module, in the order of their optimizer.

        Where no network was called before our eyes, as in the first pass of a program without an optimizer, their owner
        is looked for first.
        """
        for parameter in parameters if not self._roots.networks() else ():
            if id(parameter) not in self._roots.names.parameters and (owner := find_owner(parameter)) is not None:
                self._roots.adopt(owner)
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

    def _batch(self, entered: Entered, graph: Graph, loss: LossView) -> Batch | None:
        """Enough of this call to make it again."""
        call, args, keywords = entered
        if call is not self._forward.entered[-1][0] or (inputs := inputs_of(call.module, args, keywords)) is None:
            return None
        return batch_of(call.module, inputs, self._forward.scopes.output, graph, loss, self._forward.target)

    def _batch_size(self, before: Before) -> int | None:
        if self._forward.scopes.batch_size is not None:
            return self._forward.scopes.batch_size
        return before.loss.target_shape[0] if before.loss.target_shape else None


def _unscaled(site: Site, shift: float) -> Site:
    out = None if site.log_grad_out is None else site.log_grad_out - shift
    into = None if site.log_grad_in is None else site.log_grad_in - shift
    return replace(site, log_grad_out=out, log_grad_in=into)
