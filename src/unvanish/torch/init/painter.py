"""Carrying out the plan while one forward pass runs: each layer is set when the pass comes to it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.init.fill import Basis, Input, carry, input_from_code, input_from_data, unit_input
from unvanish.torch.init.gates import recurrent_, sequence_length
from unvanish.torch.init.layers import Layer
from unvanish.torch.init.matrices import normal_, uniform_, wide
from unvanish.torch.init.plan import Plan, Step
from unvanish.torch.init.result import Action
from unvanish.torch.init.weights import Weight, attention_weights
from unvanish.torch.wiring import Op, Wiring


@dataclass
class Painter:
    """Called after each op of the pass; the next op sees what the layer makes of its input now.

    Attributes:
        model: the network.
        wiring: of the same pass.
        plan: what to do.
        kept: ids of parameters that must stay.
        real: the batch is the user's, not a guess.
        generator: source of randomness.
        actions: what was done.
        seen: ids of the parameters that were set.
    """

    model: nn.Module
    wiring: Wiring
    plan: Plan
    kept: set[int]
    real: bool
    generator: torch.Generator
    actions: list[Action] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    _bases: dict[int, Basis] = field(default_factory=dict)
    _waiting: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._waiting.update(step.maker for step in self.plan.steps.values() if step.maker is not None)

    def __call__(self, op: Op, args: Any, kwargs: Any, result: Any) -> Tensor | None:
        """Set the layer that just ran, if the plan has one, and return its new output."""
        step = self.plan.steps.get(op.index)
        if step is not None:
            h = args[step.layer.place] if len(args) > step.layer.place else kwargs["input"]
            self._layer(step, h)
        elif not self._special(op, args):
            return None
        again = op.function(*args, **kwargs)
        if step is not None and self._entry(step) and self._rescale(step, again):
            again = op.function(*args, **kwargs)
        if isinstance(again, Tensor):
            return again
        _overwrite(result, again)
        return None

    def _layer(self, step: Step, h: Tensor) -> None:
        layer = step.layer
        self.seen.add(id(layer.weight))
        if step.role == "chain":
            basis = self._bases.get(step.maker) if step.maker is not None else None
            after = carry(step, self._input(step, h), basis, self.generator)
            self._keep_basis(step, after)
            self.actions.append(_action(step))
            return
        _zero(layer.bias)
        if step.role == "zero":
            _zero(layer.weight)
        elif step.role == "xavier":
            bound = math.sqrt(6 / sum(layer.layout.fans))
            uniform_(layer.weight, bound, self.generator)
        else:
            factor = self.plan.small if step.role == "small" else 1.0
            std = factor * _gain(h) / math.sqrt(layer.layout.fans[0])
            normal_(layer.weight, std, self.generator)
        self.actions.append(Action(layer.name, step.role, _WHY[step.role]))

    def _keep_basis(self, step: Step, after: Basis | None) -> None:
        """For the layers that read this one's signal; forgotten after the last of them, as they may be large."""
        if after is not None:
            self._bases[step.layer.index] = after
        if step.maker in self._bases:
            self._waiting[step.maker] -= 1
            if not self._waiting[step.maker]:
                del self._bases[step.maker]

    def _input(self, step: Step, h: Tensor) -> Input:
        layer = step.layer
        if step.source is not None and not step.measured:
            return input_from_code(step.source, layer.units)
        if layer.source < 0 and not self.real:
            return unit_input(layer.units)
        return input_from_data(layer.units_last(h), step.source)

    def _entry(self, step: Step) -> bool:
        return step.role == "chain" and step.source is None and (self.real or step.layer.source >= 0)

    def _rescale(self, step: Step, output: Tensor) -> bool:
        """Bring the output of a layer that reads data to the scale it is meant to have: data is not isotropic."""
        layer, target = step.layer, step.target
        rms = float((wide(output) - target.beta).square().mean().sqrt())
        factor = target.alpha / rms if rms > 0 else 1.0
        if not 1e-3 < factor < 1e3:
            return False
        with torch.no_grad():
            layer.weight.mul_(factor)
            if layer.bias is not None:
                layer.bias.sub_(target.beta).mul_(factor).add_(target.beta)
        return True

    def _special(self, op: Op, args: Any) -> bool:
        """Recurrent, attention and embedding layers, norms; False where there is nothing to set."""
        if op.kind == "normalization" and op.index in self.plan.ends | self.plan.bent:
            return self._norm(op)
        module = self.model.get_submodule(op.module)
        if op.kind == "recurrent" and isinstance(module, nn.RNNBase | nn.RNNCellBase):
            return self._recurrent(op, module, args)
        if op.kind == "attention" and isinstance(module, nn.MultiheadAttention):
            return self._attention(op, module)
        if op.kind == "embedding" and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return self._embedding(op, module)
        return False

    def _new(self, *parameters: Tensor | None) -> bool:
        """Mark parameters as set; False where the first one is to be kept, or was set already."""
        first = parameters[0]
        if first is None or id(first) in self.kept | self.seen:
            return False
        self.seen |= {id(p) for p in parameters if p is not None}
        return True

    def _recurrent(self, op: Op, module: nn.RNNBase | nn.RNNCellBase, args: Any) -> bool:
        if not self._new(*module.parameters(recurse=False)):
            return False
        steps = sequence_length(op, args, self.wiring)
        prefix = f"{op.module}." if op.module else ""
        x = args[0].reshape(-1, module.input_size)
        known = self.real or op.inputs[0] >= 0
        given = input_from_data(x, None) if known else unit_input(module.input_size)
        names = recurrent_(module, steps, given, self.kept, self.generator)
        self.actions += [Action(prefix + name, "recurrent", f"for {steps} steps") for name in names]
        return True

    def _attention(self, op: Op, module: nn.MultiheadAttention) -> bool:
        prefix = f"{op.module}." if op.module else ""
        done = False
        for name, parameter in module.named_parameters():
            if parameter.ndim < 2 or not self._new(parameter):
                continue
            zero = name == "out_proj.weight" and op.index in self.plan.ends
            parts = [Weight(name, parameter, None, Layer.flat_layout(parameter))]
            if name == "in_proj_weight":
                parts = [w for w in attention_weights(module, "") if w.name == name]
            for part in parts:
                _project(part, zero, self.generator)
            method = "zero" if zero else "xavier"
            self.actions.append(Action(prefix + name, method, _WHY[method]))
            done = True
        for bias in (module.in_proj_bias, module.out_proj.bias):
            if bias is not None and id(bias) not in self.kept:
                _zero(bias)
        return done

    def _norm(self, op: Op) -> bool:
        """The norm that ends a residual branch: at zero, or small where an activation behind it has no slope there."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        name = op.parameter("weight")
        assert name is not None, "only a norm with a weight ends a branch"
        if not self._new(parameters[name]):
            return False
        method = "zero" if op.index in self.plan.ends else "small"
        nn.init.constant_(parameters[name], 0.0 if method == "zero" else self.plan.small)
        bias = op.parameter("bias")
        if bias is not None and id(parameters[bias]) not in self.kept:
            _zero(parameters[bias])
        self.actions.append(Action(name, method, _WHY[method]))
        return True

    def _embedding(self, op: Op, module: nn.Embedding | nn.EmbeddingBag) -> bool:
        if not self._new(module.weight):
            return False
        uses = Counter(name for other in self.wiring.ops for _, name in other.parameters)
        name = op.parameter("weight") or f"{op.module}.weight"
        tied = any(other.kind == "linear" and name in dict(other.parameters).values() for other in self.wiring.ops)
        std = 1 / math.sqrt(module.embedding_dim) if tied and uses[name] > 1 else 1.0
        normal_(module.weight, std, self.generator)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
        self.actions.append(Action(name, "embedding", f"standard deviation {std:.3g}" + (", tied" if tied else "")))
        return True


_WHY = {
    "zero": "ends a residual branch",
    "small": "ends a residual branch with an activation",
    "xavier": "projects for attention",
    "he": "before a norm or inside a residual branch",
}


def _action(step: Step) -> Action:
    target = step.target
    if target.slope is not None:
        return Action(step.layer.name, "mirrored", f"slope {target.slope:.3g}")
    if target.alpha == 1 and target.beta == 0 and target.gamma == 1:
        return Action(step.layer.name, "orthogonal", "no activation behind it")
    return Action(step.layer.name, "operating point", f"alpha {target.alpha:.3g}, beta {target.beta:.3g}")


def _gain(h: Tensor) -> float:
    rms = float(wide(h).square().mean().sqrt())
    return 1 / rms if 0 < rms < math.inf else 1.0


def _zero(tensor: Tensor | None) -> None:
    if tensor is not None:
        nn.init.zeros_(tensor)


def _project(weight: Weight, zero: bool, generator: torch.Generator) -> None:
    bound = 0.0 if zero else math.sqrt(6 / sum(weight.layout.fans))
    uniform_(weight.tensor, bound, generator)


def _overwrite(old: Any, new: Any) -> None:
    """Copy new results over old ones, where an op returns several tensors."""
    for before, now in zip(old, new, strict=True):
        if isinstance(before, Tensor) and before.is_floating_point():
            before.copy_(now)
        elif isinstance(before, tuple):
            _overwrite(before, now)
