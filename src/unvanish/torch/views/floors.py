"""What a prediction that ignores its input would reach, in the units of the user's own loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unvanish.torch.probe.graph import Vertex
from unvanish.torch.probe.saved import readable, signed

_CLASSES = ("cross_entropy", "nll")
_SCALINGS = ("mul", "div", "neg", "to_copy")  # of a scalar; on anything larger they may be a mask
_REDUCTIONS = ("mean", "sum")
_MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "bce": F.binary_cross_entropy,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
}
_BENDS = {"smooth_l1": "beta", "huber": "delta"}  # losses that are square up to a bend; what autograd calls it
_HALVINGS = 50


@dataclass(slots=True)
class Reading:
    """The loss node with its saved tensors, while the graph is alive."""

    vertex: Vertex
    kind: str
    reads: Vertex | None
    saved: Tensor | None
    target: Tensor | None
    axis: int | None = None  # along which a softmax that it reads sums to 1

    def option(self, name: str) -> Any:
        """An option of the loss that autograd kept, such as its class weights; None where there is none."""
        return getattr(self.vertex.node, f"_saved_{name}", None)

    @property
    def ignored(self) -> int:
        """Class index that does not count."""
        index = self.option("ignore_index")
        return -100 if index is None else signed(index)


_SIGNS = 2  # values of a hinge's targets
_ONE_CLASS = 1e-6  # nats; less is the rounding of a batch with a single class


def constant_loss(
    kind: str, target: Tensor, ignore_index: int = -100, weight: Tensor | None = None, bend: float = 1.0
) -> float | None:
    r"""Mean loss of the best prediction that does not look at the input.

    .. math:: H(p) \text{ (cross-entropy)},\quad \mathrm{Var}(y) \text{ (MSE)},\quad
              E|y - \mathrm{med}(y)| \text{ (L1)},\quad \min_c E\, \ell(y, c) \text{ (hinge, smooth L1, Huber)}

    Args:
        kind: "cross_entropy", "nll", "bce", "bce_with_logits", "mse", "l1", "smooth_l1", "huber" or "hinge".
        target: targets of one batch, samples along axis 0.
        ignore_index: class index that does not count.
        weight: weight of each class (cross-entropy only).
        bend: distance from which smooth L1 (its beta) and Huber (its delta) are straight.

    Returns:
        The loss in nats or squared / absolute units, None where it is unknown or 0 (a batch of one).
    """
    target = target.detach()
    if target.numel() == 0:
        return None
    if kind in _CLASSES:
        return None if target.is_floating_point() else _class_entropy(target[target != ignore_index], weight)
    wide = target.double()
    rows = wide.reshape(len(wide), -1) if wide.ndim else wide.reshape(1, 1)
    if kind in ("bce", "bce_with_logits"):
        p = rows.mean(dim=0).clamp(1e-12, 1 - 1e-12)
        return _positive(float(-(p * p.log() + (1 - p) * (1 - p).log()).mean()), _ONE_CLASS)
    if kind == "mse":
        return _positive(float(rows.var(dim=0, unbiased=False).mean()))
    if kind == "l1":
        return _positive(float((rows - rows.median(dim=0).values).abs().mean()))
    if kind in _BENDS and bend > 0:
        return _positive(float(_bent(kind, _middle(rows, bend), rows, bend)))
    if kind == "hinge":  # convex with a bend at each 1 / y: the minimum of each output is at one of them, or at 0
        constants = [0.0, *(1 / float(y) for y in torch.unique(rows) if y)]
        losses = torch.stack([(1 - c * rows).clamp(min=0).mean(dim=0) for c in constants])
        return _positive(float(losses.amin(dim=0).mean()))
    return None


def _bent(kind: str, output: Tensor, target: Tensor, bend: float) -> Tensor:
    return (
        F.smooth_l1_loss(output, target, beta=bend) if kind == "smooth_l1" else F.huber_loss(output, target, delta=bend)
    )


def _middle(rows: Tensor, bend: float) -> Tensor:
    """The constant of each output at which the slopes of a bent loss, which grow with it, cancel out; by halving."""
    low, high = rows.amin(dim=0), rows.amax(dim=0)
    for _ in range(_HALVINGS):
        centre = (low + high) / 2
        above = (centre - rows).clamp(-bend, bend).mean(dim=0) > 0
        low, high = torch.where(above, low, centre), torch.where(above, centre, high)
    return ((low + high) / 2).expand_as(rows)


def _class_entropy(kept: Tensor, weight: Tensor | None) -> float | None:
    classes, counts = torch.unique(kept, return_counts=True)
    share = counts.double() if weight is None else counts * weight.detach().double()[classes]
    share = share[share > 0] / share.sum()
    return _positive(float(-(share * share.log()).sum()), _ONE_CLASS)


def _positive(value: float, least: float = 0.0) -> float | None:
    return value if value > least else None


def floor_of(reading: Reading, value: float, root: Vertex, target: Tensor) -> float | None:
    """Loss of the best constant prediction on these targets, in the units of the whole loss ``value``.

    A factor or a reduction the user put on the loss is read from the ratio of ``value`` to the loss node's own
    mean.  None where other terms are added whose floor is unknown (label smoothing is such a term).
    """
    best = _best(reading, target)
    top, decayed = _below_decay(root, reading.vertex)
    if best is None or not _only_scaled(top, reading.vertex) or not math.isfinite(value):
        return None
    mean = _own_mean(reading)
    if mean is None or not math.isfinite(mean) or mean == 0:
        return best if reading.option("reduction") == 1 and root is reading.vertex else None
    if not decayed:
        return best * value / mean
    own = mean * _terms(reading) if reading.option("reduction") == 2 else mean
    return best * own / mean + value - own if top is reading.vertex else None


def _best(reading: Reading, target: Tensor) -> float | None:
    """Mean loss of the best constant prediction; None for weights whose effect on it is not known."""
    if reading.kind not in _CLASSES and any(reading.option(name) is not None for name in ("weight", "pos_weight")):
        return None
    bend = reading.option(_BENDS.get(reading.kind, ""))
    return constant_loss(reading.kind, target, reading.ignored, reading.option("weight"), bend or 1.0)


def level_of(reading: Reading) -> float | None:
    """What a loss node gives, in units of what the best constant prediction would; None where that is not known."""
    best = None if reading.target is None else _best(reading, reading.target)
    mean = None if best is None else _own_mean(reading)
    return None if best is None or mean is None else mean / best


def own_value(reading: Reading) -> float | None:
    """What a loss node gives by its own reduction; None where that is the user's."""
    mean, reduction = _own_mean(reading), reading.option("reduction")
    if mean is None or reduction not in (1, 2):
        return None
    return mean * _terms(reading) if reduction == 2 else mean


def _below_decay(root: Vertex, vertex: Vertex) -> tuple[Vertex, bool]:
    """Past ``loss + 0.01 * sum(p.square().sum() for p in parameters)``, whose second term no prediction changes."""
    if root is not vertex and root.op == "add" and len(root.below) == 1 and root.parameters and root.shape == ():
        return root.below[0], True
    return root, False


def _only_scaled(top: Vertex, vertex: Vertex) -> bool:
    """From ``vertex`` to ``top`` there are only factors and reductions."""
    while top is not vertex:
        plain = top.isometry or top.op in _REDUCTIONS or (top.op in _SCALINGS and top.shape == ())
        if not plain or len(top.below) != 1 or top.parameters:
            return False
        top = top.below[0]
    return True


def _own_mean(reading: Reading) -> float | None:
    """The loss node's value with reduction "mean"."""
    saved, target = reading.saved, reading.target
    if saved is None or target is None:
        return None
    with torch.no_grad():
        saved = saved.double()
        if reading.kind in _CLASSES:
            weight = reading.option("weight")
            weight = None if weight is None else weight.double()
            return float(F.nll_loss(saved, target, weight, ignore_index=reading.ignored))
        if saved.shape != target.shape:
            return None
        if reading.kind in _BENDS:
            return float(_bent(reading.kind, saved, target.double(), reading.option(_BENDS[reading.kind])))
        loss = _MEANS.get(reading.kind)
        return None if loss is None else float(loss(saved, target.double()))


def _terms(reading: Reading) -> float:
    """How many times the mean the sum is."""
    target, weight = reading.target, reading.option("weight")
    assert target is not None, "the mean was computed from it"
    if reading.kind not in _CLASSES:
        return target.numel()
    kept = target[target != reading.ignored]
    return kept.numel() if weight is None else float(weight.double()[kept].sum())


def soft_floor(value: float, log_softmax: Vertex, target: Tensor) -> float | None:
    r"""Loss of the best constant prediction for targets that are probabilities, where ``value`` is their cross-entropy.

    .. math:: -\sum_c \bar p_c \ln \bar p_c, \qquad \bar p = \text{mean target}
    """
    if target.ndim != 2 or not target.is_floating_point() or not readable(log_softmax):
        return None
    wide = target.detach().double()
    known = -float((wide * log_softmax.node._saved_result.detach().double()).sum(dim=1).mean())
    mean = wide.mean(dim=0)
    return _positive(-float(torch.xlogy(mean, mean).sum())) if math.isclose(known, value, rel_tol=1e-4) else None


def floor_by_value(value: float, output: Tensor | None, target: Tensor | None) -> tuple[str, str, float | None] | None:
    """(kind, reduction, floor): a loss written by hand that has exactly the value of a known one is that one."""
    if output is None or target is None or output.shape != target.shape or not target.is_floating_point():
        return None
    given, wanted = output.detach().double(), target.double()
    difference, margin = given - wanted, (1 - given * wanted).clamp(min=0)
    few = len(torch.unique(wanted)) == _SIGNS  # else the many breakpoints of a hinge are another loss's
    known_losses = [("mse", difference.square()), ("l1", difference.abs()), *[("hinge", margin)] * few]
    for kind, known in known_losses:
        floor = constant_loss(kind, target)
        for reduction, count in (("mean", 1), ("sum", target.numel())):
            if math.isclose(float(known.mean()) * count, value, rel_tol=1e-4):
                return kind, reduction, None if floor is None else floor * count
    return None
