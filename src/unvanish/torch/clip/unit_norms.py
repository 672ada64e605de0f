"""Measures gradients unit by unit, in the place of one norm for each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unvanish.torch.clip.gradients import Gradient
from unvanish.torch.clip.norms import count_nonfinite, exact_norm, is_safe, to_host
from unvanish.torch.clip.shards import combine, local_part
from unvanish.torch.clip.survey import add_up_parts, check_numbers
from unvanish.torch.clip.units import ROWS, WHOLE, Units, units_of


class UnitNorms:
    """Fills in the norms of gradients; keeps the units of each and their norms, shaped to broadcast."""

    def __init__(self, known: dict[int, Units], *, always_exact: bool) -> None:
        self.units: list[Units] = []
        self.norms: list[Tensor] = []
        self._known = known
        self._always_exact = always_exact

    def __call__(self, gradients: list[Gradient]) -> None:
        """Measure, first fast and then exactly where that is needed."""
        self.units = [units_of(gradient.parameter, self._known) for gradient in gradients]
        for gradient, units in zip(gradients, self.units, strict=True):
            check_numbers(gradient)
            _check_form(gradient, units)
        pairs = list(zip(gradients, self.units, strict=True))
        self.norms = [units.norms(gradient.data, exact=self._always_exact) for gradient, units in pairs]
        if gradients:
            totals = to_host(list(torch._foreach_norm(self.norms)))
            self.norms = [self._settled(*each) for each in zip(gradients, self.units, self.norms, totals, strict=True)]
            add_up_parts(
                [(gradient, gradient.shards and gradient.shards.along(units.kept)) for gradient, units in pairs]
            )

    def _settled(self, gradient: Gradient, units: Units, norms: Tensor, total: float) -> Tensor:
        """Exact norms where fast ones are not right, and those of whole units where processes share them."""
        gradient.norm, gradient.nonfinite = total, 0
        if not is_safe(total, gradient.data.dtype):
            norms = units.norms(gradient.data, exact=True)
            gradient.norm = exact_norm(norms)
        if not math.isfinite(gradient.norm):
            gradient.nonfinite = count_nonfinite(gradient.data)
        cut = gradient.shards and gradient.shards.across(units.kept)
        if not cut:
            return norms
        norms, counts = combine(norms.double(), torch.full_like(norms, gradient.nonfinite), cut)
        gradient.norm = exact_norm(norms)
        gradient.nonfinite = int(counts.amax()) if counts.numel() else 0
        return norms


def weight_norms(gradients: list[Gradient], units: list[Units], *, exact: bool) -> list[Tensor]:
    """Norms of the weights of all units, exact also where the fast ones leave their range."""
    pairs = list(zip(gradients, units, strict=True))
    norms = [_weight_norms(*pair, exact=exact) for pair in pairs]
    totals = to_host(list(torch._foreach_norm(norms)))
    return [
        norm if math.isfinite(total) else _weight_norms(*pair, exact=True).nan_to_num(torch.inf, torch.inf)
        for norm, total, pair in zip(norms, totals, pairs, strict=True)
    ]


def _weight_norms(gradient: Gradient, units: Units, *, exact: bool) -> Tensor:
    """Norms of the weights of the units that the gradient has: all, or the rows that a sparse one names."""
    weight = gradient.parameter
    if type(gradient.grad) is not Tensor:
        weight, _, _ = local_part(weight, like=gradient.grad)
    if gradient.grad.is_sparse and units == ROWS:
        weight = weight.index_select(0, gradient.grad._indices()[0])
    norms = units.norms(torch.view_as_real(weight.resolve_conj()) if weight.is_complex() else weight, exact=exact)
    cut = gradient.shards and gradient.shards.across(units.kept)
    return combine(norms.double(), torch.zeros_like(norms), cut)[0] if cut else norms


def _check_form(gradient: Gradient, units: Units) -> None:
    sparse = gradient.grad.is_sparse and (gradient.grad.sparse_dim() == 1 or units == WHOLE)
    if gradient.grad.layout is not torch.strided and not (sparse and units in (ROWS, WHOLE)):
        raise ValueError(
            f"the gradient of {gradient} is sparse within its units, so they cannot be measured. Expected a dense one, "
            "or one that is sparse along rows, as of an embedding. Use .to_dense()."
        )
    if gradient.shards is not None and units.groups > 1:
        raise ValueError(
            f"the gradient of {gradient}, a grouped transposed convolution, is cut up among processes. Expected it "
            "whole. Leave this layer replicated, or clip by the global norm."
        )
