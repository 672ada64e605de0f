"""Find the layers whose units can be reset: made by one layer, read only by layers reached without a merge."""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unvanish.torch.reset.follow import carried
from unvanish.torch.reset.groups import ActivationPlan, NormPlan, NotResettable, Reader, UnitGroup, layer_name
from unvanish.torch.reset.passes import Signature, empty_batch, in_place, run, signature_of
from unvanish.torch.reset.units import along, axis_of
from unvanish.torch.reset.weights import WeightPlan, plan_of
from unvanish.torch.wiring import Op

_LAYERS = frozenset({"linear", "convolution", "transposed_convolution"})
_THROUGH = frozenset({"view", "pool", "dropout", "normalization", "activation", "scale"})
_MIXES = {
    "merge": "joins them with another branch (a unit of a residual stream has several makers and readers)",
    "attention": "mixes them in an attention",
    "softmax": "makes each depend on all others",
    "recurrent": "feeds them to a recurrent layer",
    "embedding": "reads them as indices",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The units that can be reset, the weights whose units cannot, and the calls this was seen on."""

    groups: tuple[UnitGroup, ...]
    not_resettable: tuple[NotResettable, ...]
    signature: Signature


@dataclass(slots=True)
class _Trail:
    """Units on their way: which entry belongs to whom, and have they passed an activation yet."""

    owner: int
    owners: Tensor
    activated: bool


@dataclass(slots=True)
class _Found:
    """What was found of one layer so far."""

    op: Op
    plan: WeightPlan
    units: int
    activations: list[ActivationPlan] = field(default_factory=list)
    norms: list[NormPlan] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


def layout_of(model: nn.Module, inputs: Any, trained: frozenset[str]) -> Layout:
    """Run the model once and find out which units can be reset: those of parameters in ``trained``, by full name."""
    search = _Search(model, trained)
    wiring, outputs = run(model, inputs, search.on_op)
    search.block_unseen(wiring.ops)
    search.block_outputs(outputs)
    return Layout(search.groups(), search.not_resettable(wiring.ops), signature_of(wiring))


class _Search:
    """Follows the units of every layer through one forward pass."""

    def __init__(self, model: nn.Module, trained: frozenset[str]) -> None:
        self._model = model
        self._trained = trained
        self._parameters = dict(model.named_parameters())
        self._found: dict[int, _Found] = {}
        self._trails: dict[int, _Trail] = {}
        self._results: dict[int, weakref.ref[Tensor]] = {}
        self._uses: Counter[str] = Counter()
        self._seen: set[int] = set()
        self._unread: set[int] = set()

    def on_op(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """See one call."""
        self._seen.add(op.index)
        self._uses.update({name for _, name in op.parameters} | {name for _, names in op.computed for name in names})
        sources = [self._trails[index] for index in op.inputs if index in self._trails]
        self._unread -= set(op.inputs)
        for trail in sources:
            self._read(op, trail, args, kwargs, result)
        if op.kind in _LAYERS:
            self._make(op, result)

    def _make(self, op: Op, result: Any) -> None:
        """Units begin at a layer."""
        weights = [name for _, name in op.parameters if self._parameters[name].ndim >= 2]
        plan = plan_of(op, self._parameters[weights[0]].ndim) if len(weights) == 1 else None
        if plan is None or not isinstance(result, Tensor):
            return
        if not result.numel():
            raise empty_batch(layer_name(plan.weight))
        units = plan.outputs(self._parameters[plan.weight])
        self._found[op.index] = _Found(op, plan, units)
        shape = [1] * result.ndim
        shape[plan.channel_axis] = -1
        numbers = torch.arange(1, units + 1, dtype=torch.int32, device=result.device)
        self._put(op.index, _Trail(op.index, numbers.reshape(shape).expand(result.shape), False), result)

    def _put(self, index: int, trail: _Trail, result: Tensor) -> None:
        self._trails[index] = trail
        self._results[index] = weakref.ref(result)
        self._unread.add(index)

    def _read(self, op: Op, trail: _Trail, args: Any, kwargs: Any, result: Any) -> None:
        """An op reads units: they go on behind it, or end here."""
        found = self._found[trail.owner]
        if op.kind in _LAYERS:
            self._end(op, trail, found, args, kwargs)
        elif op.kind in _THROUGH and len(op.inputs) == 1:
            self._pass(op, trail, found, result)
        else:
            found.blocked.append(f"`{op.name}` {_MIXES.get(op.kind, 'does with them what is not known')}")

    def _pass(self, op: Op, trail: _Trail, found: _Found, result: Any) -> None:
        owners = carried(op, trail.owners, result)
        if isinstance(owners, str):
            found.blocked.append(owners)
            return
        if op.kind == "activation":
            self._activate(op, trail, found)
        elif op.kind == "normalization" and (op.parameters or op.name == "batch_norm"):
            self._normalize(op, trail, found)
        self._put(op.index, _Trail(trail.owner, owners, trail.activated or op.kind == "activation"), result)

    def _activate(self, op: Op, trail: _Trail, found: _Found) -> None:
        axis = axis_of(trail.owners, found.units)
        if axis is None:
            found.blocked.append(f"they lie along several axes at `{op.name}`")
        else:
            found.activations.append(ActivationPlan(op.index, axis, op.inputs[0] if in_place(op) else None))

    def _normalize(self, op: Op, trail: _Trail, found: _Found) -> None:
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

    def _end(self, op: Op, trail: _Trail, found: _Found, args: Any, kwargs: Any) -> None:
        """A layer reads units."""
        weights = [name for _, name in op.parameters if self._parameters[name].ndim >= 2]
        alone = len(weights) == 1 and len(op.inputs) == 1
        plan = plan_of(op, self._parameters[weights[0]].ndim) if alone else None
        axis = along(trail.owners, plan.channel_axis, found.units) if plan is not None else None
        if not trail.activated:
            found.blocked.append(f"`{op.name}` of {op.module or 'the model'} reads them without an activation")
        elif plan is None:
            found.blocked.append(f"`{op.name}` of {op.module or 'the model'} reads them by a weight of unknown layout")
        elif axis is None:
            found.blocked.append(f"{layer_name(plan.weight)} reads several of them by one weight")
        else:
            found.readers.append(Reader(op.index, plan, axis))

    def block_unseen(self, ops: tuple[Op, ...]) -> None:
        """Units read by a module of which no call was seen (a custom ``autograd.Function``, a scripted module)."""
        for op in ops:
            for index in set(op.inputs) & set(self._trails) if op.index not in self._seen else ():
                self._found[self._trails[index].owner].blocked.append(f"`{op.name}` does with them what is not known")

    def block_outputs(self, outputs: list[Tensor]) -> None:
        """Units that leave the model are not ours to change."""
        returned = {id(tensor) for tensor in outputs}
        for index, trail in self._trails.items():
            if index in self._unread or id(self._results[index]()) in returned:
                self._found[trail.owner].blocked.append("they are an output of the model")

    def groups(self) -> tuple[UnitGroup, ...]:
        """The layers whose units can be reset, in execution order."""
        return tuple(
            UnitGroup(
                layer=layer_name(found.plan.weight),
                op=index,
                plan=found.plan,
                units=found.units,
                activation=found.activations[0],
                norms=tuple(found.norms),
                readers=tuple(found.readers),
            )
            for index, found in self._found.items()
            if not self._whys(found)
        )

    def _whys(self, found: _Found) -> list[str]:
        whys = list(dict.fromkeys(found.blocked))
        names = [found.plan.weight, found.plan.bias, *(reader.plan.weight for reader in found.readers)]
        names += [name for norm in found.norms for _, name in norm.parameters]
        for name in dict.fromkeys(name for name in names if name is not None):
            if self._uses[name] > 1:
                whys.append(f"{name} is used {self._uses[name]} times (tied, or a shared layer)")
            elif not self._parameters[name].requires_grad:
                whys.append(f"{name} is frozen")
            elif name not in self._trained:
                whys.append(f"{name} is not in the optimizer: nobody here trains it, or another one does")
            elif self._parameters[name].is_complex():
                whys.append(f"{name} is complex")
        if not whys and len(found.activations) != 1:
            whys.append("several activations follow" if found.activations else "no activation follows")
        return whys

    def not_resettable(self, ops: tuple[Op, ...]) -> tuple[NotResettable, ...]:
        """Every other weight (of two or more axes), with the reason."""
        whys: dict[str, list[str]] = defaultdict(list)
        for found in self._found.values():
            whys[found.plan.weight] += self._whys(found)
        for op in ops:
            for name in [name for _, name in op.parameters] + [name for _, names in op.computed for name in names]:
                if name not in whys and self._parameters[name].ndim >= 2:
                    whys[name].append(f"`{op.name}` uses it: not a linear or convolutional layer's own weight")
        for name, parameter in self._parameters.items():
            if name not in whys and parameter.ndim >= 2:
                whys[name].append("this batch did not reach it")
        return tuple(
            NotResettable(layer_name(name), "; ".join(dict.fromkeys(why))) for name, why in whys.items() if why
        )
