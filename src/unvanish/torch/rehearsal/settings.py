"""What an optimizer is set to, as plain data."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from unvanish.torch.rehearsal.together import parts_of
from unvanish.types import OptimizerView

_ADAPTIVE = ("adam", "rmsprop", "adagrad", "adadelta", "nadam", "adamax", "lion", "adafactor", "rprop", "radam")


def view_optimizer(optimizer: Optimizer, given: bool) -> OptimizerView:
    """Class, learning rates, eps and weight decay of an optimizer; ``given`` = it is the user's own.

    Some optimizers have no learning rate (theirs is relative, or found by line search): none is reported then.
    """
    return joined_views([_view(part, given) for part in parts_of(optimizer)])


def joined_views(views: Sequence[OptimizerView]) -> OptimizerView:
    """Of optimizers that step together, as of one."""
    plain = all(view.name == "SGD" for view in views)
    return OptimizerView(
        name=" and ".join(dict.fromkeys(view.name for view in views)),
        learning_rates=tuple(rate for view in views for rate in view.learning_rates),
        eps=max((view.eps for view in views if view.eps is not None), default=None),
        weight_decay=max(view.weight_decay for view in views),
        adaptive=any(view.adaptive for view in views),
        given=all(view.given for view in views),
        maximize=all(view.maximize for view in views),
        momentum=max(view.momentum for view in views) if plain else 0.0,
    )


def _view(optimizer: Optimizer, given: bool) -> OptimizerView:
    name = type(optimizer).__name__
    groups = optimizer.param_groups
    eps = groups[0].get("eps")
    return OptimizerView(
        name=name,
        learning_rates=tuple(float(group["lr"]) for group in groups if group.get("lr") is not None),
        eps=None if eps is None or isinstance(eps, tuple | list) else float(eps),
        weight_decay=max(float(group.get("weight_decay", 0) or 0) for group in groups),
        adaptive=any(kind in name.lower() for kind in _ADAPTIVE),
        given=given,
        maximize=all(bool(group.get("maximize")) for group in groups),
        momentum=max(float(group.get("momentum", 0) or 0) for group in groups),
    )
