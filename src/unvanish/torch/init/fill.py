"""Weights and biases that carry a signal from one code to the next: decode, turn, encode."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unvanish.torch.init.layers import Layer
from unvanish.torch.init.matrices import length_keeping, semi_orthogonal, wide, without_direction
from unvanish.torch.init.plan import Code, Step


@dataclass(frozen=True, slots=True)
class Input:
    """How to read x, of mean 0 and variance 1, from a layer's input h: ``gain (h - mean)``, mirrored: of half of h.

    Attributes:
        mean: per input unit of the layer, over all groups.
        gain: one number.
        mirrored: the second half of the units is the first one's mirror image.
    """

    mean: Tensor
    gain: float
    mirrored: bool


def unit_input(units: int) -> Input:
    """The input as it is hoped to be, where nothing is known of it."""
    return Input(torch.zeros(units, dtype=torch.float64), 1.0, False)


def input_from_code(code: Code, units: int) -> Input:
    """The input as theory has it."""
    mean = torch.full((units,), code.mean, dtype=torch.float64)
    return Input(mean, 1 / code.slope, True) if code.slope is not None else Input(mean, code.gamma, False)


def input_from_data(h: Tensor, code: Code | None) -> Input:
    """The input as it is measured: ``h`` has shape (samples and places, units), ``code`` what is known of it."""
    h = wide(h)
    mirrored = code is not None and code.slope is not None
    if mirrored:
        mean, centred = torch.zeros(h.shape[1], dtype=h.dtype), h[:, : h.shape[1] // 2]
        centred = centred - h[:, h.shape[1] // 2 :]
    else:
        mean = h.mean(dim=0) if code is None else torch.full((h.shape[1],), code.mean, dtype=h.dtype)
        centred = h - mean
    rms, whole = float(centred.square().mean().sqrt()), float(h.square().mean().sqrt())
    if rms <= 1e-6 * whole:  # one sample, or a constant input: nothing to centre
        mean, rms = torch.zeros_like(mean), whole
    return Input(mean, 1 / rms if rms > 0 else 1.0, mirrored)


@dataclass(frozen=True, slots=True)
class Basis:
    """Axes of a signal that fills fewer dimensions than there are units: the first ``rank`` columns span it."""

    axes: Tensor
    rank: int


@torch.no_grad()
def carry(step: Step, given: Input, basis: Basis | None, generator: torch.Generator | None) -> Basis | None:
    """Set weight and bias of a layer in a chain: read x, turn it, write it for the activation behind.

    Returns the axes of the output's signal where it does not fill all units.
    """
    layer, target = step.layer, step.target
    layout = layer.layout
    pairs = target.slope is not None
    rows, columns = layout.outputs // (1 + pairs), layout.inputs // (1 + given.mirrored)
    pattern = _to_remove(step, given)
    places = layout.places(patch=_whole_patch(step, columns, pattern))
    meeting = 1 if layout.transposed else len(places)  # transposed, each output meets one of the places
    width = columns * meeting
    fitting = basis if basis is not None and layout.groups == 1 and width == len(basis.axes) else None
    turn, after = _turn(layout.groups, rows, width, fitting, layer.weight, generator)
    lift: Tensor | float = 0.0
    if pattern is not None and width > 1:
        pattern = pattern.repeat_interleave(meeting).to(turn)
        turn, after = without_direction(turn, pattern, generator) * length_keeping(rows, width), None
        lift = target.beta * pattern / pattern.dot(pattern)
    turn = target.alpha * given.gain * turn + lift
    kernels = turn.new_zeros(layout.groups, rows, columns, layout.taps)
    kernels[..., places] = turn.reshape(layout.groups, rows, columns, meeting)
    if given.mirrored:
        kernels = torch.cat([kernels, -kernels], dim=2)
    if pairs:
        kernels = torch.cat([kernels, -kernels], dim=1)
    layout.write(layer.weight, kernels)
    if layer.bias is not None:
        layer.bias.copy_(target.beta - _answer(layer, given.mean))
    return after


def _turn(
    count: int, rows: int, columns: int, basis: Basis | None, like: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Basis | None]:
    """Semi-orthogonal matrices that keep the signal's root-mean-square, and the axes of what comes out.

    A signal that once went through a narrow layer fills only as many dimensions from there on. Each later layer keeps
    all of those, where independent random projections would lose some at every change of width.
    """
    if rows <= columns and basis is None:
        return semi_orthogonal(count, rows, columns, like=like, generator=generator), None
    axes = semi_orthogonal(count, rows, rows, like=like, generator=generator)
    both, rank = min(rows, columns), columns if basis is None else basis.rank
    turn = axes[..., :both]
    if basis is not None:
        turn = turn @ basis.axes[:, :both].T
    kept = min(rows, rank) / rank  # of the signal's energy
    after = Basis(axes[0], rank) if rank < rows and count == 1 else None
    return turn * math.sqrt(rows / (columns * kept)), after


def _to_remove(step: Step, given: Input) -> Tensor | None:
    """The mean that a layer without bias has to be blind to; None where a bias does it, or nothing needs to."""
    layout = step.layer.layout
    if step.layer.bias is not None or given.mirrored or (layout.groups > 1 and step.source is None):
        return None
    matters = float(given.mean.square().mean().sqrt()) * given.gain > 0.1
    return given.mean[: layout.inputs] if matters else None


def _whole_patch(step: Step, columns: int, pattern: Tensor | None) -> bool:
    """Matrices over the whole kernel where places are skipped or met first, else only at its centre.

    At the centre, a layer is an exact isometry at any depth; over the kernel it sees its neighbours from the start.
    """
    layout = step.layer.layout
    if not layout.kernel or layout.transposed:
        return False
    return layout.strided or step.source is None or (columns == 1 and pattern is not None)


def _answer(layer: Layer, mean: Tensor) -> Tensor:
    """What the layer makes of its input's mean, per output unit."""
    layout = layer.layout
    sums = wide(layout.read(layer.weight)).sum(dim=-1) / _overlap(layer)
    means = mean.to(sums).reshape(layout.groups, layout.inputs)
    return torch.einsum("goi,gi->go", sums, means).reshape(-1)


def _overlap(layer: Layer) -> float:
    """Matrices written per one that meets in an output: more than one where a transposed convolution fills places."""
    layout = layer.layout
    return len(layout.places(patch=False)) if layout.transposed and layout.kernel else 1.0
