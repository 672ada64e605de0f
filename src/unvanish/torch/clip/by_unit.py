"""Adaptive gradient clipping: a bound for each unit, from the norm of its own weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from unvanish.torch.clip.checks import check_share
from unvanish.torch.clip.gradients import Gradient, Parameters
from unvanish.torch.clip.norms import double, to_host
from unvanish.torch.clip.report import ClipReport, NonFinite
from unvanish.torch.clip.scaling import MILD, ROUNDING, arithmetic, scale_units_
from unvanish.torch.clip.survey import survey
from unvanish.torch.clip.unit_norms import UnitNorms, weight_norms
from unvanish.torch.clip.units import units_in

_TINY = 1e-12  # between this and its inverse, float32 has all bounds, and no norm that counts underflows


@torch.no_grad()
def clip_grad_unit_norm_(
    parameters: Parameters, ratio: float = 0.01, *, eps: float = 1e-3, nonfinite: NonFinite = "raise"
) -> ClipReport:
    r"""Bring the gradient norm of every unit down to ``ratio`` of the norm of its weights (adaptive clipping, AGC).

    .. math:: G_i \leftarrow G_i \min\left(1, \lambda \frac{\max(\lVert W_i \rVert, \epsilon)}{\lVert G_i \rVert}\right)

    A unit :math:`i` is a row of Linear, Embedding and the gate matrices of RNNs, an output channel of Conv and
    ConvTranspose (with groups), a column of GPT-2's Conv1D; a bias or the gain of a normalisation is one unit as a
    whole, also that of LayerNorm or RMSNorm over several axes.  Layers are known when a module is given; of bare or
    named parameters with two or more axes, the rows are taken, which is wrong only for the two transposed kinds and
    the norms over several axes.

    Zero-initialised parameters (the last gain of a residual branch, biases) may move by ``ratio * eps`` a step only,
    until they have grown above ``eps``; the paper leaves the last linear layer out altogether: to do so, pass the
    other modules one by one.

    Args:
        parameters: a module, ``(name, tensor)`` pairs, tensors, or one tensor; any shape, dtype, device.
        ratio: largest share of the weights' norm, above 0.
        eps: norm that weights are taken to have at least, above 0, in the unit of the weights.
        nonfinite: what to do about NaN and Inf: "raise", "skip" or "zero".

    Returns:
        What was seen and done; ``clipped`` counts gradients with at least one unit above its bound.

    Raises:
        ValueError: ``ratio`` or ``eps`` is no number above 0; NaN or Inf in a gradient with "raise".

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
        >>> layer.weight.grad = torch.tensor([[6.0, 8.0], [0.0, 0.01]])
        >>> print(clip_grad_unit_norm_(layer, 0.1))
        gradient norm 10 over 1 tensors, 1 clipped
        >>> layer.weight.grad
        tensor([[0.3000, 0.4000],
                [0.0000, 0.0100]])

    Source: Brock, De, Smith & Simonyan 2021, *High-Performance Large-Scale Image Recognition Without Normalization*,
    section 4.
    """
    ratio, eps = check_share("ratio", ratio), check_share("eps", eps)
    extreme = not all(_TINY < value < 1 / _TINY for value in (ratio, eps, ratio * eps))
    measure = UnitNorms(units_in(parameters) if isinstance(parameters, nn.Module) else {}, always_exact=extreme)
    gradients, report = survey(parameters, nonfinite, measure)
    if report.skipped or not gradients:
        return report
    weights = weight_norms(gradients, measure.units, exact=extreme)
    bounds = list(torch._foreach_clamp_min(weights, eps))
    torch._foreach_mul_(bounds, ratio)
    above = {
        at: most for at, most in _above(measure.norms, bounds).items() if most > 1 + ROUNDING[gradients[at].data.dtype]
    }
    _scale_(gradients, measure, bounds, above)
    return replace(report, clipped=len(above))


def _above(norms: list[Tensor], bounds: list[Tensor]) -> dict[int, float]:
    """Numbers of the gradients in which a unit is above its bound, with how many times at most."""
    filled = [at for at, norm in enumerate(norms) if norm.numel()]  # a process's part may be empty
    if not filled:
        return {}
    excess = torch._foreach_div([norms[at] for at in filled], [bounds[at] for at in filled])
    return {at: most for at, most in zip(filled, to_host(list(torch._foreach_max(excess))), strict=True) if most > 1}


def _scale_(gradients: list[Gradient], measure: UnitNorms, bounds: list[Tensor], above: dict[int, float]) -> None:
    """Bring the units of these down to their bounds."""
    for at, most in above.items():
        data = measure.units[at].view(gradients[at].data)
        if most < MILD:
            factors = torch.div(bounds[at], measure.norms[at]).clamp_(max=1.0)
            data.mul_(factors.to(data.device, arithmetic(data.dtype)))
        else:
            scale_units_(data, (double(bounds[at]) / double(measure.norms[at])).clamp_(max=1.0))
        gradients[at].commit()
