"""What a user may have got wrong when making a UnitReset."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from unvanish.torch.reset.scores.base import is_number, is_whole
from unvanish.torch.reset.surgery import INITIALIZERS, Initializer


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own model under DistributedDataParallel and torch.compile."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"UnitReset got a {type(model).__name__} for the model. It must be the nn.Module whose units are to be "
            "reset. Give the model first, then its optimizer."
        )
    while True:
        inner = getattr(model, "_orig_mod", model)
        inner = inner.module if isinstance(inner, DistributedDataParallel | DataParallel) else inner
        if inner is model:
            return model
        model = inner


def check_settings(*, every: int, maturity: int, max_share: float, init: Initializer, seed: int) -> None:
    """Raise ValueError for what is out of range."""
    if not is_whole(every) or every < 1:
        raise ValueError(
            f"UnitReset got every={every!r}. It must be a whole number of at least 1. Use 1 to check at each step."
        )
    if not is_whole(maturity) or maturity < 0:
        raise ValueError(
            f"UnitReset got maturity={maturity!r}. It must be a whole number >= 0. Use 0 to judge units at once."
        )
    if not is_number(max_share) or not 0 < max_share <= 1:
        raise ValueError(
            f"UnitReset got max_share={max_share!r}. It must lie in (0, 1]. At 1 a whole layer may be reset at once."
        )
    if not callable(init) and init not in INITIALIZERS:
        raise ValueError(
            f'UnitReset does not know init="{init}". It knows {", ".join(INITIALIZERS)}. '
            "Or give a function f(weight, generator) that fills the weight."
        )
    if not is_whole(seed):
        raise ValueError(
            f"UnitReset got seed={seed!r}. It must be a whole number. Use 0: new units do not read the global stream."
        )


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise ValueError where the optimizer is none or not the model's, or a parameter is sharded or has no numbers."""
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"UnitReset got a {type(optimizer).__name__} for the optimizer. It must be the torch.optim.Optimizer that "
            "trains the model. Make it first: UnitReset(model, torch.optim.Adam(model.parameters()))."
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in model.parameters()):
        raise ValueError(
            "UnitReset got an optimizer that holds none of the model's parameters. It has to reset what the optimizer "
            "keeps of a unit together with its weights. Give the optimizer that trains this model."
        )
    unreal = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if unreal:
        raise ValueError(
            f"UnitReset met parameters on the meta device ({unreal[0]} and {len(unreal) - 1} more), which have no "
            "numbers. It measures real ones. Materialise the model, then make the optimizer and UnitReset."
        )
    if dist.is_available():
        from torch.distributed.tensor import DTensor

        sharded = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
        if sharded:
            raise ValueError(
                f"UnitReset met sharded parameters ({sharded[0]} and {len(sharded) - 1} more). It needs whole rows on "
                "every rank. Use DistributedDataParallel, or reset before the model is sharded."
            )


def trained_by(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the parameters that this optimizer moves."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return frozenset(name for name, p in parameters.items() if p.requires_grad and id(p) in held)
