"""Follow the units of every layer through a forward pass: what normalises, activates and reads them, or mixes them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unvanish.torch.reset.follow import carried, over_units
from unvanish.torch.reset.groups import ActivationPlan, NormPlan, Reader, layer_name
from unvanish.torch.reset.passes import empty_batch, in_place
from unvanish.torch.reset.units import along, axis_of
from unvanish.torch.reset.weights import WeightPlan, plan_of
from unvanish.torch.wiring import Op
from unvanish.torch.wiring.calls import tensors_in

LAYERS = frozenset({"linear", "convolution", "transposed_convolution"})
_THROUGH = frozenset({"view", "pool", "dropout", "normalization", "activation", "scale"})
_MIXES = {
    "merge": "joins them with another branch (a unit of a residual stream has several makers and readers)",
    "attention": "mixes them in an attention",
    "softmax": "makes each depend on all others",
    "recurrent": "feeds them to a recurrent layer",
    "embedding": "reads them as indices",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of a call: its result's shape (None where it was not one tensor), and a layer's weight."""

    shape: torch.Size | None
    device: torch.device
    result: weakref.ref[Tensor]
    plan: WeightPlan | None


@dataclass(slots=True)
class Found:
    """What was found of the units made by one call of a layer."""

    op: Op
    plan: WeightPlan
    units: int
    activations: list[ActivationPlan] = field(default_factory=list)
    norms: list[NormPlan] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Trail:
    """Units on their way: which entry belongs to whom, and have they passed an activation yet."""

    owner: int
    owners: Tensor
    activated: bool


def seen(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, parameters: Mapping[str, Tensor]) -> Seen:
    """What is to be known of a call when the pass is over.

    Args:
        op: the call.
        args: its positional arguments.
        kwargs: its arguments by keyword.
        result: what it returned.
        parameters: of the model, by full name.
    """
    tensors = tensors_in(result)
    output = tensors[0] if tensors else tensors_in((args, kwargs))[0]  # an assignment to items returns nothing
    plan = plan_of(op, tensors_in((args, kwargs)), parameters) if op.kind in LAYERS else None
    if plan is not None and not output.numel():
        raise empty_batch(layer_name(plan.weight))
    shape = output.shape if isinstance(result, Tensor) else None
    return Seen(shape, output.device, weakref.ref(output), plan)


class Search:
    """The units of every layer, followed call by call."""

    def __init__(self, model: nn.Module, calls: Mapping[int, Seen]) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._calls = calls
        self._trails: dict[int, _Trail] = {}
        self._unread: set[int] = set()
        self._inner: dict[int, int] = {}  # a member of a handwritten activation -> whose units it has
        self.found: dict[int, Found] = {}

    def follow(self, ops: tuple[Op, ...], outputs: list[Tensor]) -> None:
        """Follow all units through these calls to what the model returns."""
        for op in ops:
            self._unread -= set(op.inputs)
            for trail in [self._trails[index] for index in op.inputs if index in self._trails]:
                self._read(op, trail)
            if op.kind in LAYERS and op.index in self._calls:
                self._make(op)
        self._block_outputs(outputs)

    def _make(self, op: Op) -> None:
        """Units begin at a layer."""
        call = self._calls[op.index]
        if call.plan is None or call.shape is None:
            return
        units = call.plan.outputs(self._parameters[call.plan.weight])
        self.found[op.index] = Found(op, call.plan, units)
        shape = [1] * len(call.shape)
        shape[call.plan.channel_axis] = -1
        numbers = torch.arange(1, units + 1, dtype=torch.int32, device=call.device)
        self._put(op.index, _Trail(op.index, numbers.reshape(shape).expand(call.shape), False))

    def _put(self, index: int, trail: _Trail) -> None:
        self._trails[index] = trail
        self._unread.add(index)

    def _read(self, op: Op, trail: _Trail) -> None:
        """An op reads units: they go on behind it, or end here."""
        found = self.found[trail.owner]
        softmax = op.kind == "softmax" and over_units(op, trail.owners, found.units)
        if op.index not in self._calls:  # in a custom ``autograd.Function``, a scripted module
            found.blocked.append(f"`{op.name}` does with them what is not known")
        elif op.kind in LAYERS:
            self._end(op, trail, found)
        elif (op.kind in _THROUGH and len(op.inputs) == 1) or softmax:
            self._pass(op, trail, found, activates=op.kind == "activation" or softmax)
        else:
            found.blocked.append(f"`{op.name}` {_MIXES.get(op.kind, 'does with them what is not known')}")

    def _pass(self, op: Op, trail: _Trail, found: Found, *, activates: bool) -> None:
        owners = carried(op, trail.owners, self._calls[op.index].shape)
        if isinstance(owners, str):
            found.blocked.append(owners)
            return
        if activates:
            self._activate(op, trail, found)
        elif op.kind == "normalization" and (op.parameters or op.name == "batch_norm"):
            self._normalize(op, trail, found)
        elif op.kind == "scale" and not trail.activated and (op.parameters or op.computed):
            found.blocked.append(
                f"`{op.name}` moves them by parameters of its own, which a reset would leave as they are"
            )
        self._put(op.index, _Trail(trail.owner, owners, trail.activated or activates))

    def _activate(self, op: Op, trail: _Trail, found: Found) -> None:
        axis = axis_of(trail.owners, found.units)
        if axis is None:
            found.blocked.append(f"they lie along several axes at `{op.name}`")
            return
        found.activations.append(ActivationPlan(op.index, axis, op.inputs[0], op.members, in_place(op)))
        self._inner |= dict.fromkeys(op.members, trail.owner)

    def _normalize(self, op: Op, trail: _Trail, found: Found) -> None:
        axis = axis_of(trail.owners, found.units)
        if axis is None:
            found.blocked.append(f"they lie along several axes at `{op.name}`")
            return
        shapes = [self._parameters[name].shape for _, name in op.parameters]
        entries = axis.owners
        if op.name in ("layer_norm", "rms_norm"):
            # one entry for each place of the normalised shape; the same for every sample
            entries = trail.owners[(0,) * (trail.owners.ndim - len(shapes[0]))].long()
        if any(shape != entries.shape for shape in shapes):
            found.blocked.append(f"the entries of `{op.name}` do not go with them")
            return
        module = self._model.get_submodule(op.module)
        running = isinstance(module, _BatchNorm) and module.running_mean is not None
        if op.name == "batch_norm" and not running and not op.arguments.get("training"):
            found.blocked.append("`batch_norm` is called by hand: its running statistics are not known")
        found.norms.append(NormPlan(op.index, op.parameters, entries, axis, op.module if running else None))

    def _end(self, op: Op, trail: _Trail, found: Found) -> None:
        """A layer reads units."""
        plan = self._calls[op.index].plan if len(op.inputs) == 1 else None
        axis = along(trail.owners, plan.channel_axis, found.units) if plan is not None else None
        if not trail.activated:
            found.blocked.append(f"`{op.name}` of {op.module or 'the model'} reads them without an activation")
        elif plan is None:
            found.blocked.append(f"`{op.name}` of {op.module or 'the model'} reads them by a weight of unknown layout")
        elif axis is None:
            found.blocked.append(f"{layer_name(plan.weight)} reads several of them by one weight")
        else:
            found.readers.append(Reader(op.index, plan, axis))

    def _block_outputs(self, outputs: list[Tensor]) -> None:
        """Units that leave the model are not ours to change."""
        returned = {id(tensor) for tensor in outputs}
        owners = {index: trail.owner for index, trail in self._trails.items()} | self._inner
        for index, owner in owners.items():
            if index in self._unread or id(self._calls[index].result()) in returned:
                self.found[owner].blocked.append("they are an output of the model")
