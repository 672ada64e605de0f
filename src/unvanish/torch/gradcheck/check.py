"""gradcheck: what a user calls for a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unvanish.torch.gradcheck.results import GradientCheck, named_type
from unvanish.torch.gradcheck.session import Session, eager
from unvanish.torch.probe.collector import without_collector
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

    (Where those with ``h`` alone agree to that limit, as for most smooth modules, it is clear already.)
    Kinks (ReLU, max-pooling) are recognised and left out; of a backward written by hand they are judged one-sidedly: it
    must lie between the derivatives to both sides.  Dropout gets the same random numbers each time; buffers, as of
    BatchNorm, are put back.  Custom ``torch.autograd.Function`` are checked one by one, also those called as
    functions.  Only what backward computes in training is checked: parameters and inputs that require a gradient.
    PyTorch's own smooth layers, where they are small, are moved many at once, each along a direction of its own, and
    one by one where the whole disagrees or a tensor has too small a part in it.

    Args:
        model: a ``torch.nn.Module`` in the mode, dtype and on the device that you train it in. Nothing of it changes.
        loss_fn: ``loss_fn(model_output, target) -> scalar tensor``; not needed for models that return their ``.loss``.
        batch: one batch ``(input, target)``. An input that is a tuple is passed as ``model(*input)``, a dict as
            ``model(**input)``. Small is best: a few samples show what many show.
        objective: ``objective(model, batch) -> scalar tensor`` for anything else. It must use the model it is given.

    Returns:
        The GradientCheck: ``.ok``, ``.failures``, ``.modules``, ``.skipped``, ``.loss``; print it.  Where no
        derivative could be compared ``.ok`` is False, too: nothing was found only where something was looked at.

    Raises:
        ValueError: for what cannot be checked; says what was expected and how to mend it.
        Exception: what the program itself raises on this batch.

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
        with without_collector():
            session = Session.of(model, loss_fn, objective, batch)
        return session.check()


def _check_arguments(model: Any, loss_fn: Any, batch: Any, objective: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"gradcheck was given {named_type(model)} as model. It expects a torch.nn.Module. "
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
