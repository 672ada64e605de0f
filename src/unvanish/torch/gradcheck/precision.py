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

_HIGHER = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}
_CASTS = {  # PyTorch's type hints know only some of them
    **{getattr(Tensor, name): torch.float64 for name in ("float", "half", "bfloat16")},
    **{getattr(Tensor, name): torch.complex128 for name in ("cfloat", "chalf")},
}


class _Double(TorchFunctionMode):
    """Answers every request for a lower floating dtype with float64, or complex128. ``asked``: there was one."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CASTS:
            self.asked = True
            return args[0].to(_CASTS[func])
        if kwargs is None:
            kwargs = {}
        elif torch.dtype in map(type, kwargs.values()):
            kwargs = {key: self._raised(value) for key, value in kwargs.items()}
        return func(*(map(self._raised, args) if torch.dtype in map(type, args) else args), **kwargs)

    def _raised(self, value: Any) -> Any:
        if not isinstance(value, torch.dtype):
            return value
        self.asked |= value in _HIGHER
        return _HIGHER.get(value, value)


class Precision:
    """Float64 for one program, run again and again: its casts are watched until a run has asked for none."""

    def __init__(self) -> None:
        self._casts = True

    @contextmanager
    def double(self) -> Iterator[None]:
        """New tensors, casts and results in float64."""
        with double_by_default():
            if self._casts:
                with _Double() as watch:
                    yield
                self._casts = watch.asked
            else:
                yield


@contextmanager
def double_by_default() -> Iterator[None]:
    """New tensors in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
