"""Cross-entropy with label smoothing: how much was smoothed, and what a prediction that ignores the input reaches."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from unvanish.torch.probe.graph import Vertex
from unvanish.torch.probe.saved import readable

_BETWEEN = frozenset({"Mul", "Div", "Neg", "Sum", "Mean", "MaskedFill", "ToCopy"})


def smoothed_floor(root: Vertex, nll: Vertex, target: Tensor, value: float) -> float | None:
    r"""Loss of the best constant prediction, where ``root`` adds a uniform part to a negative log likelihood.

    .. math:: L = (1 - \epsilon)\,\mathrm{nll} + \epsilon\,\overline{-\ln p},\qquad
              \text{floor} = H((1 - \epsilon)\,\bar p + \epsilon / C)

    ``epsilon`` is read from the value; None where the graph has another form, or no value between 0 and 1 fits.
    """
    if root.op != "add" or len(root.below) != 2 or not readable(nll) or target.ndim != 1 or target.is_floating_point():
        return None
    logs, weight = nll.node._saved_self.detach().double(), nll.node._saved_weight
    ends = {_end(below) for below in root.below}
    if weight is not None or ends != {id(nll), id(nll.below[0])} or logs.ndim != 2 or bool((target < 0).any()):
        return None
    own, uniform = float(F.nll_loss(logs, target)), float(-logs.mean())
    share = (value - own) / (uniform - own) if uniform != own else math.nan
    if not 0 < share < 1:
        return None
    frequencies = torch.bincount(target, minlength=logs.shape[1]).double() / len(target)
    best = (1 - share) * frequencies + share / logs.shape[1]
    return float(-torch.xlogy(best, best).sum())


def _end(vertex: Vertex) -> int:
    """The id of the first vertex below that is no factor and no reduction."""
    while (vertex.stem in _BETWEEN or vertex.hidden) and len(vertex.below) == 1:
        vertex = vertex.below[0]
    return id(vertex)
