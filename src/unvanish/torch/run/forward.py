"""Forward passes in full sight: which networks are called, with what, and what they put out."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils.hooks import RemovableHandle

from unvanish.torch.probe.scopes import Call, read_elsewhere, tensors_in
from unvanish.torch.probe.watcher import Watcher
from unvanish.torch.rehearsal.objective import batch_size
from unvanish.torch.run.frames import keywords_of_call
from unvanish.torch.run.outputs import Outputs
from unvanish.torch.run.quiet import Silence, unheard
from unvanish.torch.run.recorder import Recorder
from unvanish.torch.run.roots import Roots, is_loss

_MOST_CALLS = 200_000  # module calls kept while no backward pass comes: a program that only infers
_MOST_ENTERED = 32

Entered = tuple[Call, Any, dict[str, Any]]  # a call at top level, its arguments and its keyword arguments


class Forward:
    """Forward hooks on every module of the process, until ``close``."""

    def __init__(self, roots: Roots, outputs: Outputs, fail: Callable[[], object]) -> None:
        """Hook them.

        Args:
            roots: the networks known so far; new ones are adopted as they are called.
            outputs: told of what they put out.
            fail: told, in the handling of it, of an error of ours in the user's forward pass.
        """
        self.scopes = Watcher(roots.names, None)
        self.target: Tensor | None = None  # of the criterion that was called last
        self.entered: list[Entered] = []
        self.recorder = Recorder()
        self.recording = False  # is what is called from the next network on to be kept?
        self._roots, self._outputs, self._fail = roots, outputs, fail
        self._depth = self._ignored = 0
        self._sized = False  # the batch size was read since the last backward pass
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
        self.recorder.close()
        self.entered.clear()
        self.used()

    def used(self) -> None:
        """A backward pass is over: what was put out is let go of, and the next batch may be of another size."""
        self.target = self.scopes.output = None
        self._sized = False

    def calls_in(self, numbers: list[int]) -> list[Entered]:
        """The calls at top level that made nodes of this graph."""
        ordered = sorted(numbers)
        return [
            one for one in self.entered if bisect_left(ordered, one[0].end or 0) > bisect_left(ordered, one[0].start)
        ]

    def inputs(self, mine: list[Entered]) -> Any:
        """What the network was called with for this loss: the first call in its graph that was fed plain data."""
        shown = [_shown(args, keywords) for _, args, keywords in (mine or self.entered[-1:])]
        return next((one for one in shown if not any(t.grad_fn for t in tensors_in(one))), ())

    def _guarded(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """What goes wrong with us, a warning made an error too, must not end the user's forward pass."""

        def guarded(*args: Any) -> Any:
            self.recorder.aside = True
            try:
                with unheard():
                    return hook(*args)
            except Exception:
                self._fail()
                return None
            finally:
                self.recorder.aside = False

        return guarded

    def _elsewhere(self) -> bool:
        """In a worker process, another thread, or under a compiler or tracer."""
        return (os.getpid(), threading.get_ident()) != self._owner or read_elsewhere()

    def _entering(self, module: nn.Module, args: Any) -> Any:
        if self._elsewhere():
            return None
        if self._ignored:
            self._ignored += 1
            return None
        if self._depth:
            self._depth += 1
            return self.scopes.enter(module, args)
        return self._enter_root(module, args)

    def _enter_root(self, module: nn.Module, args: Any) -> Any:
        """A call at top level: of a network in training, or of something to look away from."""
        if is_loss(module):
            self.target = next(tensors_in(args[1:]), None)
        if is_loss(module) or torch.is_inference_mode_enabled() or not (torch.is_grad_enabled() or module.training):
            self._ignored = 1
            return None
        if id(module) not in self._roots.names.modules:
            self._roots.adopt(module)
        self._outputs.look_back(self.scopes, self._roots.names)
        keywords = keywords_of_call()
        inputs = _shown(args, keywords)
        if not self._sized and (size := batch_size(inputs)) is not None:
            self._sized, self.scopes.batch_size, self.scopes.moments.batch_size = True, size, size
        if len(self.scopes.calls) > _MOST_CALLS:
            self.scopes.calls.clear()
        self._depth = 1
        if self.recording:
            self.recorder.begin()
        changed = self.scopes.enter(module, args)
        self.entered = [*self.entered[1 - _MOST_ENTERED :], (self.scopes.calls[-1], args, keywords)]
        return changed

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._elsewhere():
            return
        if self._ignored:
            self._ignored -= 1
            if not self._ignored and is_loss(module):
                self._outputs.look(output, self.scopes, self._roots.names)
            return
        self._depth -= 1
        self.scopes.leave(module, args, output)
        if not self._depth:
            self._outputs.look(output, self.scopes, self._roots.names)


def _shown(args: Any, keywords: dict[str, Any]) -> Any:
    """The inputs of a call as a report shows them: labels are none."""
    named = {key: value for key, value in keywords.items() if key != "labels"}
    return {**{str(i): value for i, value in enumerate(args)}, **named} if named else args
