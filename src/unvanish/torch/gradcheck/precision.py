"""Everything in float64, also where a program asks for float32 by name (``x.float()``, ``softmax(dtype=float32)``).

Rounding to float32 on the way would hide every derivative behind noise of 1e-7 over the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LOWER = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CASTS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})


class _Double(TorchFunctionMode):
    """Answers every request for a lower floating dtype with float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CASTS:
            return args[0].double()
        kwargs = {key: _raised(value) for key, value in kwargs.items()} if kwargs else {}
        return func(*map(_raised, args), **kwargs)


def _raised(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _LOWER else value


@contextmanager
def double_precision() -> Iterator[None]:
    """New tensors, casts and results in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(before)
