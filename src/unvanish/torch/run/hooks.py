"""PyTorch's global entry points, taken while the user's script runs and given back afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from unvanish.torch.run.derivatives import parts
from unvanish.torch.run.quiet import unheard
from unvanish.torch.run.seen import Pending
from unvanish.torch.run.watch import Watch


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Tell ``watch`` of every optimizer, backward pass, step and loss scaling in the block."""
    with ExitStack() as undo:
        undo.callback(watch.close)
        undo.callback(register_optimizer_step_pre_hook(_step_begins(watch)).remove)
        undo.callback(register_optimizer_step_post_hook(_step_ended(watch)).remove)
        for owner, name, make in _REPLACED:
            original = getattr(owner, name)
            setattr(owner, name, functools.wraps(original)(make(watch, original)))
            undo.callback(setattr, owner, name, original)
        yield


def _step_begins(watch: Watch) -> Callable[[Optimizer, Any, Any], None]:
    relaxed = watch.tally.relaxed

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not relaxed(optimizer) and not watch.elsewhere():
            _tell(watch, watch.step_begins, optimizer)

    return hook


def _step_ended(watch: Watch) -> Callable[[Optimizer, Any, Any], None]:
    counted = watch.tally.counted

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        try:
            done = counted(optimizer)
        except Exception:
            done = watch.fail()
        if not done and watch.elsewhere():
            watch.pass_by()
        elif not done:
            _tell(watch, watch.step_ended, optimizer)

    return hook


def _tell(watch: Watch, event: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Whatever goes wrong with us must not stop the user's training."""
    try:
        with unheard():
            return event(*args, **kwargs)
    except Exception:
        watch.fail()
        return None


def _backward(watch: Watch, original: Callable[..., None]) -> Callable[..., None]:
    heard = watch.tally.heard

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        try:
            done = heard(tensors)
        except Exception:
            done = watch.fail()
        if done:
            return original(tensors, *args, **kwargs)
        if watch.elsewhere():
            watch.pass_by()
            return original(tensors, *args, **kwargs)
        pending = _tell(watch, watch.backward_begins, tensors)
        with _unhooked_if_it_raises(watch, pending):
            original(tensors, *args, **kwargs)
        if pending is not None:
            _tell(watch, watch.backward_ended, pending)
        return None

    return backward


@contextmanager
def _unhooked_if_it_raises(watch: Watch, pending: Pending | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if pending is not None:
            _tell(watch, pending.probe.sites)
        raise


def _grad(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    heard = watch.tally.heard

    def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        inputs = tuple(inputs) if isinstance(inputs, Iterator) else inputs
        again = bool(kwargs.get("create_graph", args[1] if len(args) > 1 else False))
        call = (outputs, inputs, grad_outputs, *args)
        if watch.elsewhere():
            return original(*call, **kwargs)
        find = watch.derivatives.loss_of
        loss = _tell(watch, find, watch.roster.tracks, outputs, inputs, plain=grad_outputs is None, again=again)
        if loss is None or _tell(watch, heard, loss):
            return original(*call, **kwargs)
        pending = _tell(watch, watch.backward_begins, loss, by_grad=True)
        with _unhooked_if_it_raises(watch, pending):
            result = original(*call, **kwargs)
        if pending is not None:
            gradients = result.values() if isinstance(result, dict) else result
            _tell(watch, watch.backward_ended, pending, dict(zip(map(id, parts(inputs)), gradients, strict=True)))
        return result

    return grad


def _init(watch: Watch, original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it stands in for one
        original(self, *args, **kwargs)
        if not watch.elsewhere():
            _tell(watch, watch.created, self)

    return __init__


def _scale(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    def scale(self: GradScaler, outputs: Any) -> Any:
        result = original(self, outputs)
        if not watch.elsewhere():
            _tell(watch, watch.scaled, result, outputs, self)
        return result

    return scale


def _scaler_step(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    def step(self: GradScaler, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        before = watch.roster.steps_of(optimizer)
        result = original(self, optimizer, *args, **kwargs)
        if not watch.elsewhere() and before == watch.roster.steps_of(optimizer):
            _tell(watch, watch.step_ended, optimizer, skipped=True)
        return result

    return step


def _compile(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    def compile(*args: Any, **kwargs: Any) -> Any:
        if not watch.elsewhere():
            _tell(watch, watch.compiled)
        return original(*args, **kwargs)

    return compile


_REPLACED: tuple[tuple[Any, str, Callable[[Watch, Callable[..., Any]], Callable[..., Any]]], ...] = (
    (torch.autograd, "backward", _backward),
    (torch.autograd, "grad", _grad),
    (Optimizer, "__init__", _init),
    (GradScaler, "scale", _scale),
    (GradScaler, "step", _scaler_step),
    (torch, "compile", _compile),
)
