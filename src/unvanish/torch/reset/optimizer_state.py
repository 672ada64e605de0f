r"""What an optimizer remembers of entries that are new: nothing.

Every state tensor of the parameter's shape (momentum, Adam's m and v, RMSprop's v, amsgrad's maximum) is set to what it
was at the start, in the entries of the reset units and nowhere else; foreach and fused optimizers keep the same state.
``step`` counts for the whole tensor and stays.  Adam's bias correction therefore does not help the new entries: with
m = v = 0 and a large ``step`` their update number t under a constant gradient is

.. math:: \mathrm{lr}\,\frac{1 - \beta_1^t}{\sqrt{1 - \beta_2^t}}

which is 3.2 lr at first and at most 6.6 lr (t = 12) for betas (0.9, 0.999), instead of lr; RMSprop makes at most
:math:`1/\sqrt{1-\rho}` lr.  That is bounded.  To keep v would be worse: after the large gradients that killed a unit,
it would hold the new one nearly still for some :math:`1/(1-\beta_2)` steps.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# states that do not start at zero: the group says at what (torch's Adagrad; RMSprop with an initial accumulator)
_STARTS = {"sum": "initial_accumulator_value", "square_avg": "initial_accumulator"}


def forget(optimizer: Optimizer, parameter: Tensor, entries: Tensor) -> tuple[str, ...]:
    """Set what the optimizer keeps of these entries of a parameter back to its start.

    Args:
        optimizer: any that keeps its state by parameter.
        parameter: one of its parameters; for others nothing is kept and nothing done.
        entries: bool of the parameter's shape.

    Returns:
        The names of the states that were set back.
    """
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), {})
    touched = []
    for name, value in state.items():
        if name != "step" and isinstance(value, Tensor) and value.shape == parameter.shape:
            value[entries.to(value.device)] = float(group.get(_STARTS.get(name, ""), 0.0))
            touched.append(name)
    return tuple(touched)
