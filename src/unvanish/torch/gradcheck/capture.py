"""Which modules and custom autograd Functions a program calls, with what, and what comes out: one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function

from unvanish.torch.gradcheck.values import Keeper


@dataclass(slots=True, eq=False)
class ModuleCall:
    """One call of one module. ``children``: the calls that it made itself."""

    module: nn.Module | None
    args: Any
    kwargs: Any
    output: Any = None
    children: list[ModuleCall] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class FunctionCall:
    """One call of a custom Function, and the innermost module call that it happened in."""

    function: type[Function]
    args: Any
    caller: ModuleCall


@dataclass(slots=True)
class Recorder:
    """Records the calls; ``root`` stands for what happens outside of all modules."""

    keeper: Keeper = field(default_factory=Keeper)
    root: ModuleCall = field(default_factory=lambda: ModuleCall(None, (), {}))
    modules: list[ModuleCall] = field(default_factory=list)
    functions: list[FunctionCall] = field(default_factory=list)
    _open: list[ModuleCall] = field(default_factory=list)

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[Recorder]:
        """Watch every call of the model's modules, and of every Function that is not PyTorch's own."""
        self._open = [self.root]
        with replaced_calls(model.modules(), self._module), _watched_functions(self._function):
            yield self
        self.keeper.forget()

    def _module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = ModuleCall(module, self.keeper.keep(args), self.keeper.keep(kwargs))
        self._open[-1].children.append(call)
        self.modules.append(call)
        self._open.append(call)
        try:
            output = real_call(module, args, kwargs)
        finally:
            self._open.pop()
        call.output = self.keeper.keep(output)
        return output

    def _function(self, function: type[Function], args: tuple[Any, ...]) -> None:
        kept = tuple(self.keeper.keep(arg, constant=not isinstance(arg, Tensor)) for arg in args)
        self.functions.append(FunctionCall(function, kept, self._open[-1]))


def real_call(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """The module with its hooks, as if nobody stood in between."""
    return type(module)._call_impl(module, *args, **kwargs)


@contextmanager
def replaced_calls(modules: Iterable[nn.Module], call: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Let ``call(module, args, kwargs)`` answer in place of these modules (of a copy), hooks included.

    ``nn.Module.__call__`` asks the instance for ``_call_impl``: the one place that all calls come through.
    """

    def stand_in(module: nn.Module) -> Callable[..., Any]:
        return lambda *args, **kwargs: call(module, args, kwargs)

    changed = list(modules)
    before = [vars(module).get("_call_impl") for module in changed]
    for module in changed:
        object.__setattr__(module, "_call_impl", stand_in(module))
    try:
        yield
    finally:
        for module, earlier in zip(changed, before, strict=True):
            if earlier is None:
                object.__delattr__(module, "_call_impl")
            else:
                object.__setattr__(module, "_call_impl", earlier)


@contextmanager
def _watched_functions(note: Callable[[type[Function], tuple[Any, ...]], None]) -> Iterator[None]:
    """Hear of every call of a custom Function: ``apply`` looks ``forward`` up in the class at each call."""
    classes = {one: one.forward for one in _subclasses(Function) if not one.__module__.startswith("torch.")}
    own = {one: vars(one).get("forward") for one in classes}
    for one, forward in classes.items():
        setattr(one, "forward", staticmethod(_noted(one, forward, note)))  # noqa: B010 - mypy: a method
    try:
        yield
    finally:
        for one, earlier in own.items():
            if earlier is None:
                del one.forward
            else:
                setattr(one, "forward", earlier)  # noqa: B010


def _noted(one: type[Function], forward: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    with_context = one.setup_context is Function.setup_context  # the older form: forward(ctx, *args)

    def watched(*args: Any, **kwargs: Any) -> Any:
        note(one, args[1:] if with_context else args)
        return forward(*args, **kwargs)

    return watched


def _subclasses(base: type[Function]) -> Iterator[type[Function]]:
    seen: set[type[Function]] = set()
    rest = base.__subclasses__()
    while rest:
        one = rest.pop()
        if one not in seen:
            seen.add(one)
            rest += one.__subclasses__()
            yield one
