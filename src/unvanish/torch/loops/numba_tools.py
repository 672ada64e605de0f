"""How our functions are compiled, and how they get at the memory of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba import types
from numba.extending import intrinsic

SUMS = {"reassoc", "nsz", "contract"}  # a sum may be taken in any order; NaN and Inf keep their meaning


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Kept on disk for the next process, where there is a place to keep it."""

    def compile_it(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, error_model="numpy", **options)(function)
        except RuntimeError:  # Numba found no folder it may write to
            return numba.njit(error_model="numpy", **options)(function)

    return compile_it


def _as_pointer(_context: Any, address: Any, like: Any) -> Any:
    """The address as a pointer to numbers of the type in ``like``."""
    signature = types.CPointer(like.dtype)(address, like)

    def generate(context: Any, builder: Any, made: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(made.return_type))

    return signature, generate


_pointer = intrinsic(_as_pointer)


@compiled()
def array(address: Any, size: Any, like: Any) -> Any:
    """The memory at an address as an array of numbers of the type in ``like``."""
    return numba.carray(_pointer(address, like), size)
