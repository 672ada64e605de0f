"""disconnected: weights the user means to train get no gradient, or no update, because of how the program is wired."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows, _histories, _wires
from unvanish.types import Cut, Evidence, Finding, Flow, Parameter, Site, Snapshot, Step
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause


@dataclass(frozen=True)
class Disconnected(AbstractRule):
    """Weights that are meant to train cannot: the graph is cut before them, or the optimizer does not know them.

    Twelve ways to lose a path, each told by its own sign: `.detach()`, `.data`, `.item()`, `.numpy()` or `no_grad` (a
    later module is fed with data that needs no gradient); the same on a state at every time step (the loss depends on
    calls of a module that are out of its graph); an op that is flat by definition (round, sign, argmax: gradient exactly
    zero behind it), in the signal's path or in what makes a weight; a frozen weight of zeros; layers in a Python list (in
    the loss's graph, but not in model.parameters()); parameters that get a gradient but are not in the optimizer, be it
    some or all; a whole network whose loss is differentiated, while no optimizer of the program steps its weights; a loss
    that has no graph; a derivative in the loss that was taken without create_graph, and a layer fed by sample() (other
    numbers in their place change the loss); attention whose mask leaves nothing but padding.

    Frozen weights, spare heads and idle experts are no fault: nothing behind them was meant to train, or nothing after
    them reads what they put out.

    Cure the wiring: drop the detach, use a straight-through or soft version of the flat op, nn.ModuleList instead of a
    list, optimizer = Opt(model.parameters()).
    """

    trains: float = 0.15
    well: float = 0.5
    cause: ClassVar[Cause] = "disconnected"
    title: ClassVar[str] = "weights cut off from the loss, or from the optimizer"
    source: ClassVar[str] = "PyTorch documentation, Autograd mechanics; Bengio et al. 2013, arXiv:1308.3432 (flat ops)"
    remedies: ClassVar[tuple[str, ...]] = (
        "remove the cut: .detach(), .data, .item(), .numpy(), no_grad(), or a flat op such as round",
        "register the layers: nn.ModuleList or nn.ModuleDict in place of a list or dict",
        "give all weights to the optimizer: Opt(model.parameters())",
    )

    def check(self, flow: Flow) -> Finding | None:
        return (
            self._loss_without_graph(flow)
            or self._cut(flow)
            or self._nothing_reached(flow)
            or self._cut_in_time(flow)
            or self._lost_history(flow)
            or self._flat_op(flow)
            or self._flat_weight(flow)
            or self._frozen_at_zero(flow)
            or self._unregistered(flow)
            or self._not_in_optimizer(flow)
            or self._forgotten(flow)
        )

    def _loss_without_graph(self, flow: Flow) -> Finding | None:
        if flow.loss.requires_grad:
            return None
        detail = flow.cuts[0].detail if flow.cuts else "no weight of the model was used with gradients on"
        return self._finding(
            ("loss",),
            0.99,
            "The loss has no graph: backward() can reach no weight "
            f"({detail}). Expected: a loss computed from the model's output by tensor ops only. "
            "Look for .item(), .numpy(), .data, .argmax(), torch.no_grad() or torch.tensor(...) between output and loss; "
            ".requires_grad_(True) on the loss itself only hides the cut.",
            "drop .item(), .numpy(), .data and no_grad() between output and loss",
        )

    def _cut(self, flow: Flow) -> Finding | None:
        cuts = [cut for cut in _wires.cuts(flow, within=True) if not cut.calls and _wires.meant_to_train(flow, cut)]
        if not cuts:
            return None
        first = cuts[0]
        how = {"detach": "by .detach() or .data", "no_grad": "under torch.no_grad()"}.get(
            first.op, "as .data, .numpy(), torch.tensor(), a comparison or an integer makes it"
        )
        places = tuple(dict.fromkeys(name for cut in cuts for name in _wires.places(flow, (cut.where, *cut.behind))))
        at, behind = _wires.places(flow, (first.where,)), _wires.places(flow, first.behind)
        return self._finding(
            places,
            0.97,
            f"The graph ends after {', '.join(at)}: {first.detail}, {how}. The weights of {', '.join(behind)} "
            "get no gradient at all although they are meant to train. Expected: a path of tensor ops from the loss to "
            "every trained weight. Remove the cut, or freeze those weights on purpose (requires_grad_(False)).",
            f"remove the cut after {at[0]}",
        )

    def _nothing_reached(self, flow: Flow) -> Finding | None:
        """All matrices are called and held by the optimizer, and the loss leads to none: a copy of numbers stands between."""
        matrices = _wires.unreached(flow)
        if not matrices:
            return None
        places = reading.modules(matrices)
        return self._finding(
            places,
            0.93,
            f"No weight matrix gets a gradient, although {', '.join(places[:4])} are called and the optimizer holds them: what "
            "they put out reaches the loss as plain numbers, if at all. Expected: a path of tensor ops from the loss to every "
            "trained weight. Look for .tolist(), .item(), .numpy(), .data or torch.tensor(...) after them.",
            f"use what {places[-1]} puts out as it is: no .tolist(), .item(), .numpy() or torch.tensor(...)",
        )

    def _cut_in_time(self, flow: Flow) -> Finding | None:
        cuts = [cut for cut in flow.cuts if cut.calls]
        if not cuts or (reading.learns(flow) and (reading.trains(flow) or 0.0) >= self.trains):
            return None  # a net that trains well may be cut between steps on purpose, as recycling nets are
        return self._finding(
            tuple(cut.where or "model" for cut in cuts),
            0.9,
            f"The state is cut off from its history between time steps: {cuts[0].detail}, although the loss depends on "
            "the earlier ones. They get no gradient, and what they should have noticed cannot be learnt. Expected: one "
            "graph through all time steps; long sequences are cut between windows, not at every step. Look for "
            ".detach(), .data, .numpy() or torch.tensor(...) on the state inside the loop.",
            "remove .detach() and .data from the state inside the loop",
        )

    def _lost_history(self, flow: Flow) -> Finding | None:
        """Numbers that other numbers in their place have proved to matter, and that no gradient comes back through."""
        lost = _histories.lost(flow)
        if not lost:
            return None
        told, where = _histories.KINDS[lost[0].op], lost[0].where
        return self._finding(
            tuple(dict.fromkeys(cut.where for cut in lost)),
            told.confidence,
            told.message.format(where=where),
            told.remedy.format(where=where),
        )

    def _flat_op(self, flow: Flow) -> Finding | None:
        flat = _wires.flat_ops(flow)
        if not flat:
            return None
        site = flat[0]
        if site.custom:
            return self._finding(
                reading.names(flat),
                0.95,
                f"The backward of `{site.op}` at {site.label}, a torch.autograd.Function of your own, gives a gradient of exactly "
                "zero for one that is not: no weight before it can train. Expected: its true derivative, or a "
                "straight-through one. unvanish.torch.gradcheck compares it with finite differences.",
                f"correct the backward of {site.op}",
            )
        return self._finding(
            reading.names(flat),
            0.97,
            f"`{site.op}` at {site.label} has derivative zero everywhere: every weight before it gets a gradient of exactly "
            "zero. Expected: an op with a slope. Use a straight-through estimator, x + (round(x) - x).detach(), or a "
            "soft version.",
            f"replace {site.op} by a straight-through or soft version",
        )

    def _flat_weight(self, flow: Flow) -> Finding | None:
        """Weights that get exactly nothing though their layers do, and are given something: they are made by a flat op."""
        starved = _wires.starved(flow)
        if not starved or reading.learns(flow):
            return None
        names = ", ".join(dict.fromkeys(s.parameter or "" for s in starved[:3]))
        return self._finding(
            reading.names(starved),
            0.95,
            f"{names}: the gradient is exactly zero, although the layer's output gets one. What makes the weight from its "
            "parameter has derivative zero or cuts the graph (round, sign, a mask of zeros, .detach() in a parametrization). "
            "Expected: a path with a slope. Use a straight-through estimator, w + (q(w) - w).detach().",
            "make quantised or masked weights with a straight-through estimator: w + (q(w) - w).detach()",
        )

    def _frozen_at_zero(self, flow: Flow) -> Finding | None:
        """Zeros that never move stand between the loss and all weights that should."""
        zeros = _wires.zeros_in_the_way(flow)
        if not zeros:
            return None
        return self._finding(
            reading.modules(zeros),
            0.93,
            f"{zeros[0].name} is frozen (requires_grad=False) and zero: no gradient passes it, and all weights before it get "
            "exactly nothing. Expected: zeros that may move, or frozen weights that are none. Unfreeze it, or load its weights.",
            f"unfreeze {zeros[0].name}, or load its weights",
        )

    def _unregistered(self, flow: Flow) -> Finding | None:
        lost = [p for p in flow.parameters if not p.registered and p.in_optimizer is False and p.log_grad is not None]
        if not lost:
            return None
        return self._finding(
            tuple(p.name for p in lost),
            0.95,
            f"{len(lost)} weights take part in the loss but are not among model.parameters() "
            f"({', '.join(p.name for p in lost[:4])}), so no optimizer step ever moves them. Expected: layers that the model has "
            "registered: none in a plain Python list or dict, none built in forward(), no tensor made of a Parameter. "
            "Use nn.ModuleList, nn.ModuleDict or nn.ParameterList, and build them in __init__().",
            "put the layers into nn.ModuleList or nn.ModuleDict, in __init__()",
        )

    def _not_in_optimizer(self, flow: Flow) -> Finding | None:
        lost = [
            p for p in flow.parameters if p.registered and p.requires_grad and p.reached and p.in_optimizer is False
        ]
        known = flow.origin == "run"  # all optimizers of the program; else a net that trains may have a second one
        goes = (reading.trains(flow) or 0.0) if reading.learns(flow) else 0.0
        if not lost or goes >= (self.well if known else self.trains):
            return None  # the notes mention these weights
        if not any(p.in_optimizer for p in flow.parameters):
            return self._stale_optimizer(lost)
        modules = reading.modules(lost)
        return self._finding(
            modules,
            0.9 if goes < self.trains else 0.75,
            f"{len(lost)} of {len(flow.parameters)} parameters get a gradient but are not in the optimizer "
            f"({', '.join(modules[:4])}): they keep their initial values for ever. Expected: every weight that requires a "
            "gradient is in one of optimizer.param_groups. Pass model.parameters(), or set requires_grad_(False) on "
            "what should stay.",
            "pass all trainable parameters to the optimizer",
        )

    def _stale_optimizer(self, lost: list[Parameter]) -> Finding:
        return self._finding(
            ("optimizer",),
            0.95,
            f"The optimizer holds none of the {len(lost)} parameters that get a gradient: its steps move tensors that the "
            "loss does not depend on. Expected: an optimizer made from the model that is trained. Make it after the model "
            "is final: a model that is built anew, copied or re-wrapped afterwards has other parameters.",
            "make the optimizer after the model is final: Opt(model.parameters())",
        )

    def _forgotten(self, flow: Flow) -> Finding | None:
        cuts = _wires.cuts(flow, within=False)
        if not cuts:
            return None
        places = tuple(dict.fromkeys(name for cut in cuts for name in cut.behind))
        return self._finding(
            places,
            0.95,
            f"backward() fills the gradients of {', '.join(places[:4])} again and again, and nothing uses them: "
            f"{cuts[0].detail}, and they keep their initial values for ever. Expected: an optimizer made with these weights, "
            "and its step() after their backward(). Look at what each optimizer was given (the same parameters twice?) and at "
            "which of them step; freeze what is not meant to train (requires_grad_(False)).",
            f"make an optimizer with the parameters of {places[0]}, and call its step()",
        )

    def _finding(self, where: tuple[str, ...], confidence: float, message: str, remedy: str) -> Finding:
        evidence = (Evidence("places without a path", len(where), "", "0"),)
        return Finding(self.cause, where, confidence, "high", evidence, message, (remedy,), self.source)

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        frozen = _flows.parameter("backbone.weight", requires_grad=False, in_optimizer=False, reached=False)
        shut = _flows.parameter("adapter.weight", requires_grad=False, in_optimizer=False, log_weight=-math.inf)
        probed = _flows.parameter("backbone.weight", in_optimizer=False)
        aside = _flows.parameter("aux_head.weight", used=True, reached=False, log_grad=None)
        spare = _flows.parameter("aux_head.weight", reached=False, log_grad=None)
        deliberate = _flows.parameter("generator.weight", reached=False, in_optimizer=False, log_grad=None)
        base = _flows.plain()
        return (
            base,
            replace(base, sites=(*base.sites, _own_function(-1.0))),
            _flows.plain(parameters=(*base.parameters, frozen, spare)),
            _flows.plain(parameters=(*base.parameters, aside)),
            _flows.plain(parameters=(*base.parameters, probed), origin="run"),
            _flows.plain(parameters=(*base.parameters, probed), steps=_slowly()),
            _flows.plain(parameters=(*base.parameters, shut)),
            replace(base, cuts=(Cut("cell", "detach", ("cell",), "only the last 1 of 8 calls of cell", 7),)),
            replace(
                _flows.plain(activation="relu", dead=1.0, separation=0.0, stuck=True),
                parameters=tuple(_flows.parameter(f"layers.{2 * i}.weight", log_grad=-math.inf) for i in range(1, 8)),
            ),
            _cancelling_bias(),
            _without_gradient(later=-2.0),
            _flows.plain(
                parameters=(*base.parameters, deliberate),
                cuts=(Cut("generator", "detach", ("generator",), "detached"),),
            ),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        lost = _flows.parameter("encoder.weight", reached=False, log_grad=None)
        unlisted = _flows.parameter("encoder.weight", in_optimizer=False)
        zeros = _flows.parameter("head.weight", requires_grad=False, in_optimizer=False, log_weight=-math.inf)
        called = _flows.parameter("encoder.weight", used=True, reached=False, log_grad=None)
        in_list = _flows.parameter("unregistered [32, 32]", registered=False, in_optimizer=False)
        return (
            replace(base, loss=replace(base.loss, requires_grad=False)),
            replace(
                base, parameters=(lost,), cuts=(Cut("encoder", "detach", ("encoder",), "its output was detached"),)
            ),
            replace(base, cuts=(Cut("cell", "detach", ("cell",), "only the last 1 of 8 calls of cell", 7),)),
            *(replace(_flows.plain(), cuts=(Cut("loss", kind, (), "plain numbers"),)) for kind in _histories.KINDS),
            replace(base, parameters=(*base.parameters, unlisted)),
            replace(_flows.plain(), parameters=(*base.parameters, unlisted), origin="run", steps=_slowly()),
            replace(base, parameters=(*base.parameters, in_list)),
            replace(_flows.plain(), parameters=(_flows.parameter("scale", shape=(1,)), called)),
            replace(base, parameters=(*(replace(p, log_grad=-math.inf) for p in base.parameters), zeros)),
            replace(base, parameters=(unlisted,)),
            replace(base, sites=(*base.sites, _own_function(-math.inf))),
            replace(base, parameters=tuple(replace(p, log_grad=-math.inf) for p in base.parameters)),
            _without_gradient(later=-math.inf),
            replace(
                _flows.plain(),
                cuts=(Cut("actor.0", _wires.OPTIMIZER, ("actor.0", "actor.2"), "no optimizer holds them"),),
            ),
        )


def _slowly() -> tuple[Step, ...]:
    """A training that removes a third of the loss."""
    return tuple(Step(i, _flows.FLOOR * (1 - i / 150)) for i in range(60))


def _without_gradient(later: float) -> Flow:
    """At the first look no matrix gets a gradient, at a later one each has this."""
    base = _flows.plain(stuck=True)
    first, then = (tuple(replace(p, log_grad=log) for p in base.parameters) for log in (-math.inf, later))
    return replace(base, parameters=first, snapshots=(Snapshot(10, base.sites, then),))


def _cancelling_bias() -> Flow:
    """The last layer of a critic with a normalised weight: of its parameters only the bias is known at the site."""
    base = _flows.plain(stuck=True)
    bias = _flows.parameter("layers.14.bias", shape=(32,), log_grad=-math.inf)
    last = _flows.with_site(base, len(base.sites) - 2, parameter=bias.name)
    return replace(last, parameters=(*base.parameters, bias))


def _own_function(log_grad_in: float) -> Site:
    """A torch.autograd.Function behind a layer that nothing else feeds a gradient to."""
    return Site(
        "own:quantize", "quantize", "other", 100, (64, 32), inputs=(99,), log_grad_out=-1.0, log_grad_in=log_grad_in,
        custom=True,
    )  # fmt: skip
