"""Make units new: fresh incoming weights, no outgoing ones, and the readers' biases take over what they gave."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from unvanish.torch.reset.groups import NormPlan, Reader, UnitGroup
from unvanish.torch.reset.observe import Moments, Readings
from unvanish.torch.reset.optimizer_state import forget

Initializer = str | Callable[[Tensor, torch.Generator], object]
INITIALIZERS = ("kaiming", "lecun", "default")
_QUIET = 0.1  # of the usual size: new weights of units that are read at once, for the change they make
_UNEVEN = 0.03  # of the most a unit can give: what counts as saturated at tanh's end varies by 2.4 %


@dataclass(frozen=True, slots=True)
class Surgeon:
    """Changes the weights of one model and what its optimizer keeps of them.

    Attributes:
        parameters: of the model, by full name.
        optimizer: theirs.
        init: how incoming weights are drawn.
        seed: with the step and the weight's name the key of what is drawn, the same on every rank.
    """

    parameters: dict[str, Tensor]
    optimizer: Optimizer
    init: Initializer
    seed: int

    @torch.no_grad()
    def reset(self, group: UnitGroup, chosen: Tensor, readings: Readings, *, bounded: bool, step: int) -> bool:
        """Reset the chosen units (U,) bool of one layer.

        Returns:
            Have the readers' biases taken over all that the units gave on average?
        """
        weights = dict.fromkeys(reader.plan.weight for reader in group.readers)
        taken_over = [
            self._unread([reader for reader in group.readers if reader.plan.weight == name], chosen, readings)
            for name in weights
        ]
        weight = self.parameters[group.plan.weight]
        entries = group.plan.making(weight, chosen)
        drawn = self._drawn(weight, group, bounded, f"{self.seed}/{step}/{group.plan.weight}")
        weight.copy_(torch.where(entries, drawn, weight))
        forget(self.optimizer, weight, entries)
        if group.plan.bias is not None:
            self._set(group.plan.bias, chosen, 0.0)
        for norm in group.norms:
            self._neutral(norm, chosen)
        return all(taken_over)

    def _unread(self, calls: list[Reader], chosen: Tensor, readings: Readings) -> bool:
        """Take the units out of a reader; its bias takes over their mean contribution.  Was that all of it?

        Args:
            calls: of one layer.
            chosen: (U,) bool.
            readings: what these calls read.
        """
        reader = calls[0]
        weight = self.parameters[reader.plan.weight]
        features = reader.features.entries_of(chosen)
        given = torch.cat([_contribution(call, features, readings, weight.dtype) for call in calls])
        bias = self.parameters[reader.plan.bias] if reader.plan.bias is not None else None
        whole = not bool(given.any())
        if bias is not None and bias.requires_grad and reader.takes_over and bool(given.isfinite().all()):
            bias += given.mean(dim=0)  # weights that are NaN or Inf go without a trace in the bias
            whole = whole or self._even(calls, features, readings, given)
        if reader.kept:  # and what it reads from now on is new
            return False
        entries = reader.plan.reading(weight, features)
        weight.masked_fill_(entries, 0.0)
        forget(self.optimizer, weight, entries)
        return whole

    def _even(self, calls: list[Reader], features: Tensor, readings: Readings, given: Tensor) -> bool:
        """Is what the units give to each output the same at all places and in all calls, as a bias is?"""
        plan = calls[0].plan
        weight = self.parameters[plan.weight]
        taken = weight.abs() * plan.reading(weight, features)
        largest = max(float(call.of_features(features, readings.means[call.op]).abs().max()) for call in calls)
        uneven = (given - given.mean(dim=0)).abs().amax(dim=0)
        return bool((uneven <= _UNEVEN * largest * plan.sum_by_output(taken)).all())

    def _drawn(self, weight: Tensor, group: UnitGroup, bounded: bool, key: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        drawn = torch.empty(weight.shape, dtype=weight.dtype)  # on the CPU: every device and rank draws the same
        if callable(self.init):
            self.init(drawn, generator)
        else:
            bound = _bound(self.init, group.plan.fan_in(weight), bounded)
            drawn.uniform_(-bound, bound, generator=generator)
        return drawn.to(weight.device).mul_(_QUIET if group.heard_at_once else 1.0)

    def _neutral(self, norm: NormPlan, chosen: Tensor) -> None:
        entries = torch.cat([chosen.new_zeros(1), chosen])[norm.entries]
        for role, name in norm.parameters:
            self._set(name, entries, 1.0 if role == "weight" else 0.0)

    def _set(self, name: str, entries: Tensor, value: float) -> None:
        parameter = self.parameters[name]
        parameter.masked_fill_(entries, value)
        forget(self.optimizer, parameter, entries)


@torch.no_grad()
def set_running(model: nn.Module, norms: tuple[NormPlan, ...], chosen: Tensor, moments: dict[int, Moments]) -> None:
    """Set the running mean and variance of the chosen units to those they have now, on average over a norm's calls."""
    for path in dict.fromkeys(norm.running for norm in norms if norm.running is not None):
        module, calls = model.get_submodule(path), [norm for norm in norms if norm.running == path]
        assert isinstance(module, _BatchNorm)
        entries, owners = calls[0].axis.entries_of(chosen), calls[0].axis.owners
        for which, buffer in enumerate((module.running_mean, module.running_var)):
            assert buffer is not None
            values = torch.stack([moments[norm.op][which] for norm in calls]).mean(dim=0)
            spread = torch.cat([values.new_zeros(1), values])[owners]
            buffer.copy_(torch.where(entries, spread.to(buffer.dtype), buffer))


def _contribution(reader: Reader, features: Tensor, readings: Readings, dtype: torch.dtype) -> Tensor:
    """(places, outputs of the reader): the mean, over samples, of what these features add to them.

    The layer itself is run on its mean input, for it is linear: right for stride, padding, groups.
    """
    call = readings.calls[reader.op]
    given = reader.of_features(features, readings.means[reader.op]).to(dtype)
    added = call.apply(given) - call.apply(torch.zeros_like(given))
    return added.movedim(reader.plan.channel_axis, -1).flatten(0, -2)


def _bound(init: str, fan_in: int, bounded: bool) -> float:
    """Half width of the uniform distribution."""
    if init == "default":  # what nn.Linear and nn.Conv draw: variance 1 / (3 fan_in)
        return 1 / math.sqrt(fan_in)
    gain = 2.0 if init == "kaiming" and not bounded else 1.0
    return math.sqrt(3 * gain / fan_in)
