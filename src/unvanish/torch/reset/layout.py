"""Find the layers whose units can be reset: made by one layer, read only by layers reached without a merge."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.reset.groups import NotResettable, UnitGroup, layer_name
from unvanish.torch.reset.passes import Signature, run, signature_of
from unvanish.torch.reset.search import Found, Search, Seen, seen
from unvanish.torch.reset.ties import calls_of, forbidden, readers_of
from unvanish.torch.wiring import Op, with_activations


@dataclass(frozen=True, slots=True)
class Layout:
    """What one pass has shown.

    Attributes:
        groups: the units that can be reset, and those that are judged only (``left_alone``).
        not_resettable: the weights whose units cannot be reset.
        signature: the calls this was seen on.
    """

    groups: tuple[UnitGroup, ...]
    not_resettable: tuple[NotResettable, ...]
    signature: Signature


def layout_of(model: nn.Module, inputs: Any, trained: frozenset[str]) -> Layout:
    """Run the model once and find out which units can be reset: those of parameters in ``trained``, by full name."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    calls: dict[int, Seen] = {}
    uses: Counter[str] = Counter()

    def on_op(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        calls[op.index] = seen(op, args, kwargs, result, parameters)
        uses.update({name for _, name in op.parameters} | {name for _, names in op.computed for name in names})

    wiring, outputs = run(model, inputs, on_op)
    search = Search(model, calls)
    like = next((p for p in parameters.values() if p.is_floating_point()), torch.empty(0))
    search.follow(with_activations(wiring, like).ops, outputs)
    judge = _Judge(parameters, trained, uses, _by_layer(search.found))
    return Layout(judge.groups(), judge.not_resettable(wiring.ops), signature_of(wiring))


def _by_layer(found: dict[int, Found]) -> list[list[Found]]:
    """The calls of each layer: of one weight, used in one direction."""
    layers: dict[tuple[str, int], list[Found]] = {}
    for call in found.values():
        layers.setdefault((call.plan.weight, call.plan.out_axis), []).append(call)
    return list(layers.values())


@dataclass(frozen=True, slots=True)
class _Judge:
    """Which of the units that were found can be reset."""

    parameters: dict[str, Tensor]
    trained: frozenset[str]
    uses: Counter[str]
    layers: list[list[Found]]

    def groups(self) -> tuple[UnitGroup, ...]:
        """The layers whose units are judged, in execution order."""
        groups: dict[str, UnitGroup] = {}
        for calls in self.layers:
            if not self._whys(calls):
                group = self._group(calls)
                groups.setdefault(group.layer, group)  # a weight used in both directions: the first
        return tuple(groups.values())

    def _group(self, calls: list[Found]) -> UnitGroup:
        plan = calls[0].plan
        return UnitGroup(
            layer=layer_name(plan.weight),
            plan=plan,
            units=calls[0].units,
            activations=tuple(call.activations[0] for call in calls),
            norms=tuple(norm for call in calls for norm in call.norms),
            readers=readers_of(calls, self.uses),
            left_alone="; ".join(forbidden(calls, self.uses)) or None,
        )

    def _whys(self, calls: list[Found]) -> list[str]:
        """Why units cannot even be judged: they get lost, or are not trained here."""
        whys = list(dict.fromkeys(why for call in calls for why in call.blocked))
        for name in calls_of(calls):
            if not self.parameters[name].requires_grad:
                whys.append(f"{name} is frozen")
            elif name not in self.trained:
                whys.append(f"{name} is not in the optimizer: nobody here trains it, or another one does")
            elif self.parameters[name].is_complex():
                whys.append(f"{name} is complex")
        counts = {len(call.activations) for call in calls}
        if not whys and counts != {1}:
            whys.append("several activations follow" if max(counts) > 1 else "no activation follows")
        return whys

    def not_resettable(self, ops: tuple[Op, ...]) -> tuple[NotResettable, ...]:
        """Every weight (of two or more axes) whose units are not reset, with the reason."""
        whys: dict[str, list[str]] = defaultdict(list)
        for calls in self.layers:
            whys[calls[0].plan.weight] += self._whys(calls) + forbidden(calls, self.uses)
        for op in ops:
            for name in [name for _, name in op.parameters] + [name for _, names in op.computed for name in names]:
                if name not in whys and self.parameters[name].ndim >= 2:
                    whys[name].append(f"`{op.name}` uses it: not a linear or convolutional layer's own weight")
        for name, parameter in self.parameters.items():
            if name not in whys and parameter.ndim >= 2:
                whys[name].append("this batch did not reach it")
        resettable = {group.plan.weight for group in self.groups() if group.left_alone is None}
        return tuple(
            NotResettable(layer_name(name), "; ".join(dict.fromkeys(why)))
            for name, why in whys.items()
            if why and name not in resettable
        )
