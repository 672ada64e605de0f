"""gradcheck and gradcheck_function: what a user calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.gradcheck.inspect import Report, inspect
from unvanish.torch.gradcheck.pieces import differentiable
from unvanish.torch.gradcheck.results import GradientCheck
from unvanish.torch.gradcheck.session import Session, eager
from unvanish.torch.gradcheck.units import Unit
from unvanish.torch.gradcheck.values import Keeper, fill, held_in
from unvanish.torch.rehearsal.copies import grads_aside, preserved_randomness
from unvanish.torch.rehearsal.objective import check_program


def gradcheck(
    model: nn.Module,
    loss_fn: Callable[..., Any] | None = None,
    batch: Any = None,
    *,
    objective: Callable[..., Any] | None = None,
) -> GradientCheck:
    r"""Is backward right, in every module? Each is checked by itself, so depth hides nothing.

    A check of the whole network cannot see a wrong derivative where gradients vanish: its part in the whole is below
    every tolerance.  Here one forward pass notes what enters each module; then, in float64 on a deep copy, each
    module's own computation :math:`y = f(x)` (the modules that it calls are stood in for by what they returned) is
    checked along random directions :math:`d` with random cotangents :math:`c` of length one:

    .. math:: \frac{|\langle J^T c, d \rangle - \langle c, D f(x)[d] \rangle|}{\text{scale}} \le 10^{-7},\qquad
              D f(x)[d] \text{ by central differences with } h \text{ and } h/2 \text{, extrapolated.}

    Kinks (ReLU, max-pooling) are recognised and left out; dropout gets the same random numbers each time; buffers,
    as of BatchNorm, are put back.  Custom ``torch.autograd.Function`` are checked one by one, also those called as
    functions.  Only what backward computes in training is checked: parameters and inputs that require a gradient.

    Args:
        model: a ``torch.nn.Module`` in the mode, dtype and on the device that you train it in. Nothing of it changes.
        loss_fn: ``loss_fn(model_output, target) -> scalar tensor``; not needed for models that return their ``.loss``.
        batch: one batch ``(input, target)``. An input that is a tuple is passed as ``model(*input)``, a dict as
            ``model(**input)``. Small is best: a few samples show what many show.
        objective: ``objective(model, batch) -> scalar tensor`` for anything else. It must use the model it is given.

    Returns:
        The GradientCheck: ``.ok``, ``.failures``, ``.modules``, ``.skipped``, ``.loss``; print it.

    Raises:
        ValueError: for what cannot be checked; says what was expected and how to mend it.

    Example:
        >>> import torch
        >>> class Wrong(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         y = x.sigmoid()
        ...         ctx.save_for_backward(y)
        ...         return y
        ...     @staticmethod
        ...     def backward(ctx, g):
        ...         (y,) = ctx.saved_tensors
        ...         return -3 * g * y * (1 - y)
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(30))
        ...     def forward(self, x):
        ...         for k, layer in enumerate(self.layers):
        ...             x = Wrong.apply(layer(x)) if k == 0 else layer(x).sigmoid()
        ...         return x
        >>> _ = torch.manual_seed(0)
        >>> check = gradcheck(Net(), torch.nn.functional.mse_loss, (torch.randn(8, 4), torch.randn(8, 4)))
        >>> check.ok, check.failures[0].kind, round(check.failures[0].analytic / check.failures[0].numeric, 6)
        (False, 'Wrong', -3.0)

    Source: central differences, relative error and kinks: CS231n, "Gradient checks", and Griewank and Walther (2008),
    Evaluating Derivatives, section 3.2 (adjoint and tangent give the same number).
    """
    _check_arguments(model, loss_fn, batch, objective)
    with preserved_randomness(), grads_aside(model), torch.inference_mode(False), torch.enable_grad(), eager():
        return Session.of(model, loss_fn, objective, batch).check()


def gradcheck_function(function: Callable[..., Any], *inputs: Any) -> GradientCheck:
    r"""Is the derivative of one function right? For a custom ``torch.autograd.Function`` pass its ``apply``.

    The same check as ``gradcheck``, of ``function(*inputs)`` by every floating-point tensor among its inputs.

    .. math:: \langle J^T c, d \rangle = \langle c, D f(x)[d] \rangle

    Args:
        function: takes the inputs, returns a tensor or a structure of tensors. It must give the same for the same.
        inputs: tensors of any shape, computed with in float64, and anything else the function takes.

    Returns:
        The GradientCheck; its only module is the function.

    Raises:
        ValueError: if the function is a module, or no input is a floating-point tensor.

    Example:
        >>> import torch
        >>> gradcheck_function(torch.sigmoid, torch.linspace(-3, 3, 7)).ok
        True

    Source: as for ``gradcheck``.
    """
    if isinstance(function, nn.Module) or not callable(function) or isinstance(function, type):
        raise ValueError(
            f"gradcheck_function was given a {type(function).__name__}. It expects a function of tensors. "
            "For a module call gradcheck(model, loss_fn, batch); of an autograd.Function pass its .apply."
        )
    with preserved_randomness(), torch.inference_mode(False), torch.enable_grad(), eager():
        tracked = [
            one.detach().clone().requires_grad_() if isinstance(one, Tensor) and one.is_floating_point() else one
            for one in inputs
        ]
        template = Keeper().keep(tuple(tracked))
        name = _name(function)
        held = differentiable(held_in(template, "input"), "input")
        if not held:
            raise ValueError(
                f"No input of {name} is a floating-point tensor. A derivative is taken by such tensors. "
                "Pass at least one, for example torch.randn(3, 4)."
            )
        unit = Unit(name, "function", 1, lambda supply: function(*fill(template, supply)), held, strict=True)
        report = Report()
        inspect(unit, report)
    return report.result(None)


def _name(function: Callable[..., Any]) -> str:
    owner = getattr(function, "__self__", None)  # of a Function's apply: the Function
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return owner.__name__
    return getattr(function, "__name__", type(function).__name__)


def _check_arguments(model: Any, loss_fn: Any, batch: Any, objective: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"gradcheck was given a {type(model).__name__} as model. It expects a torch.nn.Module. "
            "For a function, or an autograd.Function's .apply, call gradcheck_function(function, *inputs)."
        )
    if batch is None:
        raise ValueError(
            "gradcheck was called without a batch. It needs one batch (input, target). "
            "Pass batch=(x, y), for example next(iter(loader)); a few samples are enough."
        )
    check_program(model, loss_fn, objective, None)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "No parameter of the model requires a gradient, so backward has nothing to compute. "
            "Expected: at least one parameter with requires_grad=True. "
            "Call model.requires_grad_(True), or gradcheck_function(model.forward, x) for derivatives by the input."
        )
