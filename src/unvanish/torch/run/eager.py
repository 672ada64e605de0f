"""A compiled network runs as it is written while it is looked at: hooks are blind to what the compiler makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_EAGER = "torch.compile is set aside at the steps that are looked at: they run eager"


class Eager:
    """Sets ``torch.compile`` aside, and back; says so once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.notes: list[str] = []  # what the report should say of it
        self._say = say
        self._stance: Any = None

    def begin(self) -> None:
        """From here on, unless it has begun already."""
        if self._stance is not None:
            return
        self._stance = torch.compiler.set_stance("force_eager")
        if not self.notes:
            self.notes.append(_EAGER)
            self._say(_EAGER)

    def end(self) -> None:
        """Compiled as before."""
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
