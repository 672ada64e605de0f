"""From calls to pieces: a module's own computation, with stand-ins for the modules it calls; a custom Function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.autograd import Function

from unvanish.torch.gradcheck.capture import FunctionCall, ModuleCall, real_call, replaced_calls
from unvanish.torch.gradcheck.plain import is_plain
from unvanish.torch.gradcheck.units import Supply, Unit, Which
from unvanish.torch.gradcheck.values import Held, continuous, fill, held_in


def module_unit(
    call: ModuleCall,
    path: str,
    which: Which,
    names: Mapping[nn.Module, str],
    program: tuple[Callable[[Supply], Any], Any] | None = None,
) -> Unit:
    """A module call by itself. ``program`` computes the loss of a batch: for the call that stands for the outside."""
    called = dict.fromkeys(child.module for child in call.children if child.module is not None)

    def forward(supply: Supply) -> Any:
        passed: list[Any] = []
        with replaced_calls(called, _Answers(call.children, supply, passed)) if called else nullcontext():
            if call.module is None:
                assert program is not None, "the outermost call is the program"
                output = program[0](supply)
            else:
                output = real_call(call.module, fill(call.args, supply), fill(call.kwargs, supply))
        return output, passed

    entering = [*held_in(call.args, "input"), *held_in(call.kwargs, "input")]
    inputs = differentiable(entering, "input")
    for child in call.children:
        assert child.module is not None, "only the outermost call has none"
        name = f"output of {names[child.module] or 'the model'}"
        returned = list(held_in(child.output, name))
        entering += returned
        for held, place in differentiable(returned, name).items():
            inputs.setdefault(held, place)  # an input passed on keeps its name
    entering += held_in(program[1]) if program is not None else ()
    inside = [call.module] if call.module is not None else []
    if call.module is not None and call.module._modules:
        inside = [m for m in call.module.modules() if m not in called]
    return Unit(
        module=path,
        kind="loss" if call.module is None else type(call.module).__name__,
        which=which,
        forward=forward,
        inputs=inputs,
        entering=tuple(entering),
        parameters=() if call.module is None else tuple(_trainable(call.module)),
        modules=tuple(inside),
        plain=call.module is not None and is_plain(call.module),
    )


def differentiable(named: Sequence[tuple[str, Held]], alone: str) -> dict[Held, str]:
    """Those that are differentiated by, with their names; a single tensor needs no place in the name."""
    return {held: alone if len(named) == 1 else name for name, held in reversed(named) if held.differentiable}


class _Answers:
    """Stands in for the modules that were called: notes what each is given, returns what it returned."""

    def __init__(self, children: Sequence[ModuleCall], supply: Supply, passed: list[Any]) -> None:
        self._queues: dict[nn.Module, list[ModuleCall]] = {}
        for child in children:
            assert child.module is not None, "only the outermost call has none"
            self._queues.setdefault(child.module, []).append(child)
        self._taken = dict.fromkeys(self._queues, 0)
        self._supply, self._passed = supply, passed

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        queue, taken = self._queues[module], self._taken[module]
        self._taken[module] = taken + 1
        if taken < len(queue):  # later ones: a checkpoint runs its part again in backward
            self._passed.append((args, kwargs))
        return fill(queue[taken % len(queue)].output, self._supply)


def _trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    for name, parameter in module.named_parameters(recurse=bool(module._modules)):
        if parameter.requires_grad and continuous(parameter):
            yield name, parameter, "." in name


def function_unit(call: FunctionCall, path: str, which: Which) -> Unit:
    """A custom autograd Function by itself."""
    function: type[Function] = call.function
    entering = tuple(held_in(call.args, "input"))
    return Unit(
        module=path,
        kind=function.__name__,
        which=which,
        forward=lambda supply: function.apply(*fill(call.args, supply)),
        inputs=differentiable(entering, "input"),
        entering=entering,
        strict=True,
    )
