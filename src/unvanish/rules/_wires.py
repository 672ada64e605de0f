"""Where the wiring of a program leaves weights without a gradient, or a gradient without use."""

from __future__ import annotations

import math

from unvanish import reading
from unvanish.rules import _histories
from unvanish.types import Cut, Flow, Parameter, Site

OPTIMIZER = "optimizer"  # what a Cut is called behind which gradients arrive, and nothing uses them
_FLAT = ("round", "floor", "ceil", "sign", "trunc", "heaviside", "bernoulli", "poisson", "normal")
_APART = 1e-6  # share of the signal that differs between samples; less is rounding


def cuts(flow: Flow, *, within: bool) -> list[Cut]:
    """Cuts within the graph of the loss, or those between a gradient and any optimizer."""
    return [cut for cut in flow.cuts if cut.op not in _histories.KINDS and (cut.op != OPTIMIZER) == within]


def meant_to_train(flow: Flow, cut: Cut) -> bool:
    """A cut in front of weights that the optimizer does not hold is deliberate."""
    behind = [p for p in flow.parameters if any(p.name.startswith(f"{name}.") for name in cut.behind)]
    return not behind or any(p.in_optimizer is not False for p in behind)


def places(flow: Flow, names: tuple[str, ...]) -> tuple[str, ...]:
    """Modules by name; of the network itself, which has none, the parameters behind the cut."""
    own = tuple(p.name for p in flow.parameters if "." not in p.name and p.requires_grad and not p.reached) or (
        "model",
    )
    return tuple(place for name in names for place in ((name,) if name else own))


def unreached(flow: Flow) -> list[Parameter]:
    """The matrices that were used and are held by the optimizer, where the loss leads to none at all."""
    if any(p.reached for p in flow.parameters if len(p.shape) > 1):
        return []
    return [p for p in flow.parameters if len(p.shape) > 1 and p.requires_grad and p.used and p.in_optimizer]


def flat_ops(flow: Flow) -> list[Site]:
    """Ops that are given a gradient and pass exactly nothing, where it gets no further by another way."""
    flat = [s for s in flow.sites if s.op in _FLAT and s.log_grad_in in (None, -math.inf) and s.inputs]
    flat += [s for s in flow.sites if s.custom and s.log_grad_in == -math.inf and s.inputs]
    flat = [s for s in flat if s.log_grad_out is not None and s.log_grad_out > -math.inf]
    return [] if flat and _bypassed(flow, flat[0]) else flat


def _bypassed(flow: Flow, site: Site) -> bool:
    """What feeds the flat op still gets a gradient by another way (a residual, a straight-through sum)."""
    feeding = [s for s in flow.sites if s.order in site.inputs and s.log_grad_out is not None]
    return any(s.log_grad_out is not None and s.log_grad_out > -math.inf for s in feeding)


def starved(flow: Flow) -> list[Site]:
    """Layers whose output gets a gradient, and whose weight gets exactly none, at no look.

    At first only the places may get one at which the input is still zero, such as a decoder's empty slots.
    """
    later = {p.name for look in flow.snapshots for p in look.parameters if p.log_grad not in (None, -math.inf)}
    trained = [p for p in reading.trainable(flow) if len(p.shape) > 1 and p.name not in later]
    by_name = {p.name: p for p in trained}  # of matrices: a bias may cancel in the loss
    layers = [s for s in reading.body(flow) if s.parameter in by_name and s.kind != "recurrent"]
    return [s for s in layers if by_name[s.parameter or ""].log_grad == -math.inf and _given(s)]


def _given(layer: Site) -> bool:
    """Does a gradient arrive at this layer, and does what enters it tell samples apart?  Zeros alone make bias of all."""
    arrives = layer.log_grad_out is not None and math.isfinite(layer.log_grad_out)
    return arrives and layer.forward is not None and (layer.forward.separation or 0.0) > _APART


def zeros_in_the_way(flow: Flow) -> list[Parameter]:
    """Frozen matrices of zeros, where every matrix that should train gets exactly nothing."""
    trained = [p for p in reading.trainable(flow) if len(p.shape) > 1]
    if not trained or any(p.log_grad != -math.inf for p in trained):
        return []
    return [p for p in flow.parameters if not p.requires_grad and len(p.shape) > 1 and p.log_weight == -math.inf]
