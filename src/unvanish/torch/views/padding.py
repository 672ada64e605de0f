"""Does attention look at nothing but padding, because its mask is turned over?

PyTorch's two masks say the opposite: in ``key_padding_mask`` True means "leave it out", in the mask of
``scaled_dot_product_attention`` "take it in".  Turned over, nothing fails: each sequence is summed up from its padding,
which is the same for all of them.  Such keys are equal in all samples at a place, and those that are left out are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.probe.naming import names_of
from unvanish.torch.rehearsal.copies import preserved_randomness
from unvanish.torch.rehearsal.moved import copy_of
from unvanish.torch.rehearsal.objective import Objective, fresh
from unvanish.types import Cut

_SHUT = -1e4  # added to a score: its key is left out
_EQUAL = 1e-5  # of the keys' size: rounding
_FEWEST = 3  # samples
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def only_padding(model: nn.Module, goal: Objective, batch: Any) -> tuple[Cut, ...]:
    """The first masked attention, if the keys it takes in hold nothing of any sample, and those it leaves out do."""
    work, trained = copy_of(model, None, goal)
    for module in work.model.modules():
        if isinstance(module, _DROPOUTS):
            module.eval()  # it would make equal keys differ
    verdicts: list[tuple[str, bool]] = []
    with preserved_randomness(), _watched(work.model, verdicts):
        trained.run(work.model, fresh(batch))
    if not verdicts or not verdicts[0][1]:
        return ()
    name = verdicts[0][0]
    return (Cut(name, "padding", (), f"{name} takes in the padding of each sequence and leaves its content out"),)


@contextmanager
def _watched(model: nn.Module, verdicts: list[tuple[str, bool]]) -> Iterator[None]:
    """Judge the masks of every attention in the block."""
    names, inside = names_of(model).modules, [""]
    product = nn.functional.scaled_dot_product_attention

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        inside.append(names.get(id(module), inside[-1]))
        if isinstance(module, nn.MultiheadAttention):
            given = dict(zip(("query", "key", "value", "key_padding_mask"), args, strict=False)) | kwargs
            _judge(verdicts, inside[-1], *_of_module(module, given.get("key"), given.get("key_padding_mask")))

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        inside.pop()

    def attend(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        _judge(verdicts, inside[-1] or "attention", *_of_product(key, attn_mask))
        return product(query, key, value, attn_mask, *args, **kwargs)

    handles: list[Any] = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in model.modules()]
    handles += [module.register_forward_hook(leave, always_call=True) for module in model.modules()]
    nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = product
        for handle in handles:
            handle.remove()


def _of_module(module: nn.MultiheadAttention, key: Any, mask: Any) -> tuple[Any, Any]:
    """Keys (samples, places, features), and which of them are taken in (samples, places)."""
    if not isinstance(key, Tensor) or not isinstance(mask, Tensor) or key.ndim != 3 or mask.ndim != 2:
        return None, None
    return key if module.batch_first else key.transpose(0, 1), ~mask if mask.dtype == torch.bool else mask > _SHUT


def _of_product(key: Any, mask: Any) -> tuple[Any, Any]:
    """The same for (samples, heads, places, features); the last query takes in all that is not masked as later."""
    if not isinstance(key, Tensor) or not isinstance(mask, Tensor) or key.ndim != 4 or mask.ndim != 4:
        return None, None
    if mask.shape[0] != key.shape[0] or mask.shape[-1] != key.shape[-2]:
        return None, None
    last = mask[:, 0, -1]
    return key.transpose(1, 2).flatten(2), last if last.dtype == torch.bool else last > _SHUT


def _judge(verdicts: list[tuple[str, bool]], name: str, keys: Tensor | None, taken: Tensor | None) -> None:
    if keys is None or taken is None or keys.shape[:2] != taken.shape or len(keys) < _FEWEST:
        return
    if bool(taken.all()) or not bool(taken.any()):
        return
    differs = _differs(keys.detach(), taken)
    if differs is not None:
        verdicts.append((name, not differs and bool(_differs(keys.detach(), ~taken))))


def _differs(keys: Tensor, chosen: Tensor) -> bool | None:
    """Do the chosen keys differ between samples at any place? None where no place has two of them."""
    shared = chosen.sum(0) > 1
    if not bool(shared.any()):
        return None
    wide, known = keys.double(), chosen.unsqueeze(-1)
    high = torch.where(known, wide, -torch.inf).amax(0)[shared]
    low = torch.where(known, wide, torch.inf).amin(0)[shared]
    return bool((high - low).max() > _EQUAL * wide.abs().max())
