"""What a user may have got wrong when making a UnitReset."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from unvanish.torch.reset.surgery import INITIALIZERS, Initializer


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own model under DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", model)
        inner = inner.module if isinstance(inner, DistributedDataParallel | DataParallel) else inner
        if inner is model:
            return model
        model = inner


def check_settings(*, every: int, maturity: int, max_share: float, init: Initializer) -> None:
    """Raise ValueError for what is out of range."""
    if every < 1:
        raise ValueError(f"UnitReset got every={every}. It must be at least 1. Use every=1 to check at each step.")
    if maturity < 0:
        raise ValueError(f"UnitReset got maturity={maturity}. It must not be negative. Use 0 to judge units at once.")
    if not 0 < max_share <= 1:
        raise ValueError(
            f"UnitReset got max_share={max_share}. It must lie in (0, 1]. At 1 a whole layer may be reset at once."
        )
    if not callable(init) and init not in INITIALIZERS:
        raise ValueError(
            f'UnitReset does not know init="{init}". It knows {", ".join(INITIALIZERS)}. '
            "Or give a function f(weight, generator) that fills the weight."
        )


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise ValueError where the optimizer is not the model's, or a parameter is sharded or has no numbers."""
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
