"""Initialisation chosen layer by layer from how the model is wired, in one pass, and judged by its signs of life."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from unvanish.torch.init.checks import check_batch, check_generator, check_model
from unvanish.torch.init.guess import guessed_inputs
from unvanish.torch.init.painter import Painter
from unvanish.torch.init.plan import Method, make_plan
from unvanish.torch.init.result import Initialization
from unvanish.torch.init.vitals import vital_signs
from unvanish.torch.init.weights import Keep, protected, watched
from unvanish.torch.wiring import Wiring, trace


def initialize_(
    model: nn.Module, batch: Any = None, *, keep: Keep = (), generator: torch.Generator | None = None
) -> Initialization:
    r"""Initialise a whole model so that signal and gradient get through, each layer as its place asks for; in place.

    .. math:: W = \begin{cases}
              \alpha \gamma Q & \text{in a plain chain} \\
              \frac1k \begin{pmatrix} Q & -Q \\ -Q & Q \end{pmatrix}
              & \text{in a long one, where } \phi(x) - \phi(-x) = k x \\
              N(0, 1 / (\text{fan}_{in} E[h^2])) & \text{before a norm or in a branch, which reads } h \\
              0 & \text{at the end of a residual branch} \end{cases}

    with Q (semi-)orthogonal. Plain chains of layers and activations get an operating point (:func:`operating_point_`,
    which says what alpha and gamma are, and has the biases) for the number of activations that are really in a row,
    and mirrored weights (:func:`mirrored_`) where there are ten or more and the activation allows it; convolutions have
    Q at the centre of the kernel. The last layer of a residual branch, or the norm that ends it, starts at zero, layers
    before a norm and inside branches get He weights, attention projections Xavier, recurrent layers orthogonal hidden
    weights, input weights for the number of steps, and open gates. Other norms, frozen parameters and what is in
    ``keep`` stay.

    Args:
        model: any network.
        batch: one batch of its inputs, as (samples, ...): a tensor, a tuple of positional or a mapping of keyword
            arguments, to trace the model with and to scale its first layers to; noise of the right shape where not
            given. Some dozens of samples will do.
        keep: names, modules or parameters to leave alone, such as a pretrained encoder; one or several.
        generator: source of randomness; torch's global one where not given.

    Returns:
        What was done, and the vital signs before and after, along the network's depth and recurrent layers' time;
        ``.ok`` is False where one fails (signal or gradient change by a factor of 30, samples look alike), None where
        none could be observed. Print it. Buffers, ``.grad`` and training mode are as they were, and torch's random
        stream, of which one number is drawn where there is no ``generator``.

    Raises:
        ValueError: no model, or one on the meta device; the batch cannot be guessed, is empty, or holds NaN or Inf;
            something in ``keep`` that the model does not have; no generator.

    Example:
        >>> layers = [m for _ in range(50) for m in (nn.Linear(32, 32), nn.Sigmoid())]
        >>> net = nn.Sequential(*layers, nn.Linear(32, 10))
        >>> done = initialize_(net, torch.randn(64, 32))
        >>> done.ok, done.depths, abs(done.before.backward) > 50, abs(done.after.backward) < 1
        (True, (50,), True, True)

    Source: Martens et al. 2021 (arXiv:2110.01765), Balduzzi et al. 2017 (arXiv:1702.08591), Xiao et al. 2018
    (arXiv:1806.05393) for convolutions, Zhang et al. 2019 (arXiv:1901.09321) for residual branches.
    """
    return _initialize(model, batch, keep, generator, "auto")


def operating_point_(
    model: nn.Module, batch: Any = None, *, keep: Keep = (), generator: torch.Generator | None = None
) -> Initialization:
    r"""Put every activation of a plain network on the part of its curve that suits the network's depth, in place.

    .. math:: W = \alpha \gamma Q,\ b = \beta - m W 1;\quad W_{in} = \alpha Q,\ b_{in} = \beta;\quad
              W_{out} = \gamma Q,\ b_{out} = -m W_{out} 1

    with Q (semi-)orthogonal and alpha, beta, m, gamma from :func:`unvanish.theory.operating_point`. It makes plain
    networks of a thousand layers trainable with any activation that has a derivative, sigmoid too.

    Args:
        model: as for :func:`initialize_`, of which this is the choice for all plain chains.
        batch: one batch of inputs.
        keep: names, modules or parameters to leave alone.
        generator: source of randomness.

    Returns:
        What was done, and the vital signs.

    Raises:
        ValueError: as :func:`initialize_`.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> operating_point_(net, torch.randn(32, 8)).actions[0].detail
        'alpha 1.12, beta 0'

    Source: Martens et al. 2021 (arXiv:2110.01765), section 4; folded into the weights here.
    """
    return _initialize(model, batch, keep, generator, "operating point")


def mirrored_(
    model: nn.Module, batch: Any = None, *, keep: Keep = (), generator: torch.Generator | None = None
) -> Initialization:
    r"""Start units as pairs of opposite sign, so that a deep plain network begins as an exact isometry; in place.

    .. math:: W = \frac1k \begin{pmatrix} Q & -Q \\ -Q & Q \end{pmatrix}
              \text{ where } \phi(x) - \phi(-x) = k x

    ReLU, leaky ReLU, GELU, SiLU, softplus and hardswish have such a k. What cannot be paired (odd widths, grouped
    convolutions, other activations) gets an operating point.

    Args:
        model: as for :func:`initialize_`.
        batch: one batch of inputs.
        keep: names, modules or parameters to leave alone.
        generator: source of randomness.

    Returns:
        What was done, and the vital signs.

    Raises:
        ValueError: nothing in the model can be paired, or as :func:`initialize_`.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> done = mirrored_(net, torch.randn(32, 8))
        >>> bool((net[2].weight[:4, :4] == -net[2].weight[4:, :4]).all())
        True

    Source: Balduzzi et al. 2017 (arXiv:1702.08591), section 4.
    """
    return _initialize(model, batch, keep, generator, "mirrored")


_NAMES: dict[Method, str] = {"auto": "initialize_", "operating point": "operating_point_", "mirrored": "mirrored_"}


def _initialize(
    model: nn.Module, batch: Any, keep: Keep, generator: torch.Generator | None, method: Method
) -> Initialization:
    where = _NAMES[method]
    check_model(where, model)
    check_generator(where, generator)
    model = watched(model)
    inputs = guessed_inputs(model) if batch is None else batch
    check_batch(where, inputs)
    kept = protected(model, keep)
    wiring = trace(model, inputs)
    plan = make_plan(wiring, model, kept, method)
    if method == "mirrored" and not any(step.target.slope for step in plan.steps.values()):
        raise ValueError(
            f"mirrored_: nothing in {type(model).__name__} can be paired. Expected layers with an even number of units "
            "before ReLU, leaky ReLU, GELU, SiLU, softplus or hardswish. Use operating_point_ or initialize_."
        )
    before = vital_signs(model, inputs, wiring)
    painter = Painter(model, wiring, plan, kept, batch is not None, generator or _own_generator())
    trace(model, inputs, on_op=painter)
    after = vital_signs(model, inputs, wiring)
    left = _untouched(model, painter.seen | kept, wiring)
    done = Initialization(tuple(painter.actions), left, plan.depths, before, after)
    if failures := "; ".join(after.failures()):
        warnings.warn(
            f"The initialisation of {type(model).__name__} is not good: {failures}. Print the result.", stacklevel=3
        )
    return done


def _own_generator() -> torch.Generator:
    """Seeded from torch's global generator, because the trace puts the global one back as it was."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ()).item()))


def _untouched(model: nn.Module, seen: set[int], wiring: Wiring) -> tuple[tuple[str, str], ...]:
    """Weights (not biases, scales and the like) that nobody asked to keep and that were left all the same."""
    reasons = {
        name: "reaches the data by way of other tensors" for op in wiring.ops for _, b in op.computed for name in b
    }
    reasons |= {name: "belongs to a kind of layer without a rule" for op in wiring.ops for _, name in op.parameters}
    return tuple(
        (name, reasons.get(name, "does not meet the data in this forward pass"))
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in seen
    )
