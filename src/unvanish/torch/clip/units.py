"""Which axes of a parameter number its units: the things in a layer that have one output each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unvanish.torch.clip.norms import double


@dataclass(frozen=True, slots=True)
class Units:
    """Units lie along the axes ``kept`` of the parameter, after axis 0 was split into ``groups`` where above 1."""

    kept: tuple[int, ...] = (0,)
    groups: int = 1

    def view(self, tensor: Tensor) -> Tensor:
        """The tensor with its groups on an axis of their own."""
        shape = tensor.shape
        return tensor if self.groups == 1 else tensor.view(self.groups, shape[0] // self.groups, *shape[1:])

    def norms(self, tensor: Tensor, *, exact: bool = False) -> Tensor:
        """L2 norm of every unit in float32 or float64, shaped to broadcast with ``view(tensor)``.

        ``exact``: in float64, right also where squares leave the range of float32.
        """
        viewed = self.view(tensor)
        axes = [axis for axis in range(viewed.ndim) if axis not in self.kept]
        if not axes:
            return viewed.abs()
        if not exact:
            wide = viewed if viewed.dtype == torch.float64 else viewed.float()
            norms: Tensor = torch.linalg.vector_norm(wide, dim=axes, keepdim=True)
            return norms
        wide = double(viewed)
        peak = wide.abs().amax(dim=axes, keepdim=True) if wide.numel() else wide.new_ones(())
        peak = torch.where((peak > 0) & peak.isfinite(), peak, 1.0)
        norms = torch.linalg.vector_norm(wide / peak, dim=axes, keepdim=True)
        return (peak * norms).to(viewed.device, torch.float32 if wide.device != viewed.device else torch.float64)


ROWS = Units()
WHOLE = Units(())
_COLUMNS = Units((1,))
_NORMS = (nn.LayerNorm, nn.RMSNorm)  # the others have one axis
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def units_of(parameter: Tensor, known: dict[int, Units]) -> Units:
    """As its layer says; else a vector or scalar is one unit, and the units of anything larger are its rows."""
    return known.get(id(parameter), WHOLE if parameter.ndim < 2 else ROWS)


def units_in(module: nn.Module) -> dict[int, Units]:
    """id(parameter) -> units, for the layers whose units are not their rows.

    Rows are right for Linear and Bilinear (out, ...), Conv (out, in / groups, ...), Embedding (word, ...), the gate
    matrices of RNN, LSTM, GRU (gates * hidden, ...) and the projections of attention.
    """
    known: dict[int, Units] = {}
    for layer in module.modules():
        units = _layer(layer)
        if units is not None:
            known.update((id(weight), units) for weight in _weights(layer) if weight.ndim >= 2)
    return known


def _layer(layer: nn.Module) -> Units | None:
    if isinstance(layer, _TRANSPOSED):  # (in, out / groups, ...): group j of the inputs feeds group j of the outputs
        return _COLUMNS if layer.groups == 1 else Units((0, 2), layer.groups)
    if isinstance(layer, _NORMS):  # over several axes too, one gain scales one output each: rows are no units
        return WHOLE
    hugging_face = sys.modules.get("transformers.pytorch_utils")
    if hugging_face is not None and isinstance(layer, hugging_face.Conv1D):  # (in, out), as GPT-2 has it
        return _COLUMNS
    return None


def _weights(layer: nn.Module) -> Iterator[Tensor]:
    """Parameters of the layer itself, and what a parametrization (weight norm, ...) made of them."""
    yield from layer.parameters(recurse=False)
    if parametrize.is_parametrized(layer):
        for name, parametrization in layer.parametrizations.items():  # type: ignore[operator, union-attr]
            ndim = getattr(layer, name).ndim
            yield from (part for part in parametrization.parameters(recurse=False) if part.ndim == ndim)
