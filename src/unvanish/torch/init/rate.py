"""A learning rate for the depth and width a network has."""

from __future__ import annotations

import statistics
from typing import Any

from torch import nn

from unvanish.torch.init.checks import check_batch, check_model, check_positive
from unvanish.torch.init.gates import sequence_length
from unvanish.torch.init.guess import guessed_inputs
from unvanish.torch.init.layers import layers_of
from unvanish.torch.init.plan import make_plan
from unvanish.torch.init.weights import watched
from unvanish.torch.wiring import Op, trace


def learning_rate(model: nn.Module, batch: Any = None, *, c: float | None = None) -> float:
    r"""Learning rate for RMSprop (and Adam) on a plain deep network.

    .. math:: \eta = \frac{c}{\text{fan}_{in} \cdot L},\quad c = \frac{1}{2 E|\phi'|} \text{ unless given}

    A step of RMSprop moves each weight by about eta, hence what goes into an activation by up to eta fan_in, what comes
    out by E|phi'| times that, and L layers add that up: to half of the signal at this c. In the terms of
    :func:`operating_point_`, a change dW of W = alpha gamma Q changes the code x of the layer's input and output by
    dx = dW x / (alpha gamma), where 1 / (alpha gamma) is about the activation's slope. So sigmoid, whose weights are
    four times those of tanh for the same map, gets four times the rate. Use it with the initialisations of this package
    and :class:`unvanish.torch.centered.CenteredUpdates`; with others the depth is lost anyway.

    Args:
        model: any network; the median fan_in of its layers counts, and its longest chain of activations that no skip
            connection goes around, or its longest sequence.
        batch: one batch of inputs, to find the depth; noise of the right shape where not given.
        c: in place of one over twice the mean slope that the activations have where they are used (their median):
            about 1/2 for tanh, 2 for sigmoid, 1 for mirrored ReLU, GELU and SiLU, 1 where there is none. Try 0.3, 1
            and 3 times that.

    Returns:
        The learning rate.

    Raises:
        ValueError: no layer, or the batch cannot be guessed.

    Example:
        >>> layers = [m for _ in range(100) for m in (nn.Linear(64, 64), nn.ReLU())]
        >>> learning_rate(nn.Sequential(*layers, nn.Linear(64, 10)))
        0.00015625

    Source: measured on plain networks of 10 to 10,000 layers (`benchmarks/init_depth.py`); the same scaling in width
    as Yang et al. 2022 (arXiv:2203.03466), table 3.
    """
    check_model("learning_rate", model)
    if c is not None:
        check_positive("learning_rate", "c", c, "the factor on 1 / (fan_in depth)")
    model = watched(model)
    inputs = guessed_inputs(model) if batch is None else batch
    check_batch("learning_rate", inputs)
    wiring = trace(model, inputs)
    fans = [layer.layout.fans[0] for layer in layers_of(wiring, model, set()).values()]
    plan = make_plan(wiring, model, set(), "auto")
    depths = [1, *plan.depths]

    def measure(op: Op, args: Any, kwargs: Any, result: Any) -> None:
        layer = model.get_submodule(op.module)
        if op.kind == "recurrent" and isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            fans.append(float(layer.hidden_size))
            depths.append(sequence_length(op, args, wiring))

    trace(model, inputs, on_op=measure)
    if not fans:
        raise ValueError(
            f"learning_rate: no layer found in {type(model).__name__}. Expected linear, convolution or recurrent "
            "layers that the batch goes through. Pass a batch that reaches them."
        )
    if c is None:
        c = 0.5 / statistics.median(plan.slopes) if plan.slopes else 1.0
    return c / (statistics.median(fans) * max(depths))
