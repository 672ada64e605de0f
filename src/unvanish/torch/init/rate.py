"""A learning rate for the depth and width a network has."""

from __future__ import annotations

import statistics
from typing import Any

from torch import nn

from unvanish.torch.init.checks import check_batch, check_model, check_positive
from unvanish.torch.init.gates import sequence_length
from unvanish.torch.init.guess import guessed_inputs
from unvanish.torch.init.layers import layers_of
from unvanish.torch.init.plan import Code, make_plan
from unvanish.torch.init.weights import watched
from unvanish.torch.wiring import Op, trace


def learning_rate(model: nn.Module, batch: Any = None, *, c: float | None = None, centered: bool = False) -> float:
    r"""Learning rate for RMSprop (and Adam) on a plain deep network.

    .. math:: \eta = \frac{c}{\text{fan}_{in} \cdot L},\quad c = \frac{1}{2 E|\phi'| (1 + |m| / s)} \text{ unless given}

    A step of RMSprop moves each weight by about eta, hence what goes into an activation by up to eta fan_in, what comes
    out by E|phi'| times that, and L layers add that up: to half of the signal at this c. In the terms of
    :func:`operating_point_`, a change dW of W = alpha gamma Q changes the code x of the layer's input and output by
    dx = dW x / (alpha gamma), where 1 / (alpha gamma) is about the activation's slope. But what a layer reads is
    m + s x, with m and s the mean and the standard deviation of the activation before it, and all weights of a unit may
    move the same way: that adds |m| / s to x. :class:`unvanish.torch.centered.CenteredUpdates` takes it out, which
    leaves c = 1 / (2 E|phi'|): three times the rate for sigmoid at 10 layers, eight times at 1,000. Tanh and mirrored
    pairs have no such mean.

    Measured on digits (width 64, :func:`initialize_`, torch's RMSprop, 150 steps, 3 seeds, c from 1/8 to 2): this c is
    within .02 of the best median test accuracy for tanh, sigmoid and ReLU at 20 and 100 layers, and for ReLU, GELU and
    sigmoid at 5. Sigmoid at 20 and 100 layers gets .95 and .90; with CenteredUpdates at that rate .97 and .96, at the
    rate of ``centered`` .98 and .97, and at the latter without them .79 and .08. A thousand layers of sigmoid need them
    (.39 without after 100 steps). Use the initialisations of this package; with others the depth is lost anyway.

    Args:
        model: any network; the median fan_in of its layers counts, and its longest chain of activations that no skip
            connection goes around, or its longest sequence.
        batch: one batch of inputs, to find the depth; noise of the right shape where not given.
        c: in place of one over twice the mean slope that the activations have where they are used, and their mean
            (the median over activations): about 1/2 for tanh, 1 for mirrored ReLU, GELU and SiLU, 0.6 for sigmoid at
            20 layers, less where there are more, 2 with ``centered``; 1 where there is none. Try 0.3 and 3 times that.
        centered: whether the optimizer is wrapped in CenteredUpdates. False is safe with and without.

    Returns:
        The learning rate.

    Raises:
        ValueError: no layer, c not above 0, or a batch that is empty, holds NaN or Inf, or cannot be guessed.

    Example:
        >>> layers = [m for _ in range(100) for m in (nn.Linear(64, 64), nn.Sigmoid())]
        >>> net = nn.Sequential(*layers, nn.Linear(64, 10))
        >>> f"{learning_rate(net):.2g}", f"{learning_rate(net, centered=True):.2g}", learning_rate(net, c=1.0)
        ('6.4e-05', '0.00033', 0.00015625)

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
    return (c or _factor(plan.codes, centered)) / (statistics.median(fans) * max(depths))


def _factor(codes: tuple[Code, ...], centered: bool) -> float:
    """Half of the signal in one step: see :func:`learning_rate`."""
    moves = [code.mean_slope * (1 if centered else 1 + code.offset) for code in codes]
    return 0.5 / statistics.median(moves) if moves else 1.0
