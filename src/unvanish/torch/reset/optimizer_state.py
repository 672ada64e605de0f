r"""What an optimizer remembers of entries that are new: nothing.

Every state tensor of the parameter's shape is set to what it was at the start, in the entries of the reset units and
nowhere else; foreach and fused optimizers keep the same state.  That is 0 for momentum, Adam's m and v, RMSprop's v,
amsgrad's maximum; the initial accumulator for Adagrad and our RMSprop; the learning rate for Rprop's step size; the
parameter itself for ASGD's average.  Adafactor keeps means over rows and columns: of a row or column that is new as a
whole they are set to 0, others keep their share of the old entries.  LBFGS keeps pairs of steps and gradients of all
parameters at once, on a function that is another now: it begins anew.  State of another shape is not known here; it
stays, with a warning.

``step`` counts for the whole tensor and stays.  Adam's bias correction therefore does not help the new entries: with
m = v = 0 and a large ``step`` their update number t under a constant gradient is

.. math:: \mathrm{lr}\,\frac{1 - \beta_1^t}{\sqrt{1 - \beta_2^t}}

which is 3.2 lr at first and at most 6.6 lr (t = 12) for betas (0.9, 0.999), instead of lr; RMSprop makes at most
:math:`1/\sqrt{1-\rho}` lr.  That is bounded.  To keep v would be worse: after the large gradients that killed a unit,
it would hold the new one nearly still for some :math:`1/(1-\beta_2)` steps.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# states that do not start at zero: the group says at what (torch's Adagrad; RMSprop with an initial accumulator; Rprop)
_STARTS = {"sum": "initial_accumulator_value", "square_avg": "initial_accumulator", "step_size": "lr"}
_OF_ROWS = {"row_var": -1, "col_var": -2}  # Adafactor's means, and the axis they are taken over


def forget(optimizer: Optimizer, parameter: Tensor, entries: Tensor) -> tuple[str, ...]:
    """Set what the optimizer keeps of these entries of a parameter back to its start.

    Args:
        optimizer: any that keeps its state by parameter.
        parameter: one of its parameters, new already; for others nothing is kept and nothing done.
        entries: bool of the parameter's shape.

    Returns:
        The names of the states that were set back.
    """
    group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), {})
    if "history_size" in group:  # LBFGS
        optimizer.state.clear()
        return ("history",)
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    touched = []
    for name, value in state.items():
        if name == "step" or not isinstance(value, Tensor) or not value.ndim or not parameter.ndim:
            continue  # a count or a product that holds for the whole tensor
        chosen = _chosen(name, value, entries)
        if chosen is None:
            _warn(optimizer, name, value, parameter)
            continue
        value[chosen.to(value.device)] = _start(name, value, parameter, entries, group)
        touched.append(name)
    return tuple(touched)


def _chosen(name: str, value: Tensor, entries: Tensor) -> Tensor | None:
    """Which entries of a state are the past of new entries alone; None where that is not known."""
    if value.shape == entries.shape:
        return entries
    whole = entries.all(dim=_OF_ROWS[name], keepdim=True) if name in _OF_ROWS and entries.ndim > 1 else None
    return whole if whole is not None and whole.shape == value.shape else None


def _start(name: str, value: Tensor, parameter: Tensor, entries: Tensor, group: dict[str, Any]) -> Tensor | float:
    if name == "ax":
        return parameter.detach()[entries].to(value)
    return float(group.get(_STARTS.get(name, ""), 0.0))


def _warn(optimizer: Optimizer, name: str, value: Tensor, parameter: Tensor) -> None:
    warnings.warn(
        f"UnitReset leaves {name!r} of {type(optimizer).__name__} as it is: with shape {tuple(value.shape)} for a "
        f"parameter of shape {tuple(parameter.shape)} it does not show what belongs to the new units. Expected one "
        "entry for each of the parameter's. Take an optimizer that keeps these, or let the old units' past lead the "
        "first updates of the new ones.",
        stacklevel=2,
    )
