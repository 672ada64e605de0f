"""PyTorch reads the environment when it is imported, which it is before a script that is watched begins."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def threads_as_set() -> Iterator[None]:
    """When the script says ``import torch`` in this block, as many threads as it has asked for in the environment."""
    original, before = builtins.__import__, {name: os.environ.get(name) for name in _THREADS}

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "torch" and builtins.__import__ is importing:
            builtins.__import__ = original
            _follow(before)
        return original(name, *args, **kwargs)

    builtins.__import__ = importing
    try:
        yield
    finally:
        if builtins.__import__ is importing:
            builtins.__import__ = original


def _follow(before: dict[str, str | None]) -> None:
    changed = (os.environ.get(name) for name in _THREADS if os.environ.get(name) != before[name])
    wanted = next((value for value in changed if value is not None and value.isdigit() and int(value)), None)
    if wanted is not None:
        torch.set_num_threads(min(int(wanted), os.cpu_count() or 1))
