"""gradcheck_function: what a user calls for one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.gradcheck.inspect import inspect
from unvanish.torch.gradcheck.pieces import differentiable
from unvanish.torch.gradcheck.report import Given, Report
from unvanish.torch.gradcheck.results import GradientCheck, named_type
from unvanish.torch.gradcheck.session import eager
from unvanish.torch.gradcheck.units import Unit, Which, floating
from unvanish.torch.gradcheck.values import Keeper, continuous, fill, held_in
from unvanish.torch.rehearsal.copies import preserved_randomness


def gradcheck_function(function: Callable[..., Any], *inputs: Any) -> GradientCheck:
    r"""Is the derivative of one function right? For a custom ``torch.autograd.Function`` pass its ``apply``.

    The same check as ``gradcheck``, of ``function(*inputs)`` by every floating-point tensor among its inputs, and by
    the real and the imaginary part of every complex one.

    .. math:: \langle J^T c, d \rangle = \langle c, D f(x)[d] \rangle

    Args:
        function: takes the inputs, returns a tensor or a structure of tensors. It must give the same for the same.
        inputs: tensors of any shape, computed with in float64, and anything else the function takes.

    Returns:
        The GradientCheck; its only module is the function.

    Raises:
        ValueError: if the function is a module, or nothing it returns can be differentiated by an input.
        Exception: what the function itself raises on these inputs in float64.

    Example:
        >>> import torch
        >>> gradcheck_function(torch.sigmoid, torch.linspace(-3, 3, 7)).ok
        True

    Source: as for ``gradcheck``.
    """
    if isinstance(function, nn.Module) or not callable(function) or isinstance(function, type):
        raise ValueError(
            f"gradcheck_function was given {named_type(function)}. It expects a function of tensors. "
            "For a module call gradcheck(model, loss_fn, batch); of an autograd.Function pass its .apply."
        )
    with preserved_randomness(), torch.inference_mode(False), torch.enable_grad(), eager():
        unit = _unit(function, inputs)
        _refuse_what_gives_nothing(unit)
        single = len(unit.entering) == 1
        report = Report(
            {held: Given(unit.module, unit.kind, "input" if single else name) for name, held in unit.entering}
        )
        inspect(unit, report)
    return report.result(None)


def _unit(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Unit:
    tracked = [
        one.detach().clone().requires_grad_() if isinstance(one, Tensor) and continuous(one) else one for one in inputs
    ]
    template, name = Keeper().keep(tuple(tracked)), _name(function)
    entering = tuple(held_in(template, "input"))
    held = differentiable(entering, "input")
    if not any(one.data.numel() for one in held):
        raise ValueError(
            f"No input of {name} is a floating-point tensor with numbers in it. A derivative is taken by such tensors. "
            "Pass at least one, for example torch.randn(3, 4)."
        )
    run = lambda supply: function(*fill(template, supply))  # noqa: E731 - the unit's forward
    return Unit(name, "function", Which(), run, held, entering, strict=True, alone=True)


def _refuse_what_gives_nothing(unit: Unit) -> None:
    """One run as it is: what it raises is the user's to see."""
    entries = {held: held.data.clone().requires_grad_(held.differentiable).clone() for _, held in unit.entering}
    try:
        with unit.conditions():
            output = unit.forward(lambda held: entries[held])
    except Exception as error:
        error.add_note(
            f"This error comes from {unit.module}, run by unvanish in float64. "
            "Expected: a function that works on these inputs in double precision. "
            "Mend the function, or pass inputs that it is made for."
        )
        raise
    found = floating(output)
    if not found:
        raise ValueError(
            f"{unit.module} returned {named_type(output)} without a floating-point number in a tensor. "
            "A derivative is taken of tensors of such numbers. "
            "Return the tensor itself: .item(), float(), .numpy() and .argmax() leave none to differentiate."
        )
    if not any(y.requires_grad for y in found):
        raise ValueError(
            f"No output of {unit.module} carries a gradient back to an input. "
            "Expected: outputs computed from the floating-point inputs, with nothing detached in between. "
            "Look for .detach(), .data, .item() and torch.no_grad() on the way."
        )


def _name(function: Callable[..., Any]) -> str:
    owner = getattr(function, "__self__", None)  # of a Function's apply: the Function
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return owner.__name__
    return getattr(function, "__name__", type(function).__name__)
