"""No warning of what we compute or install reaches the user, or breaks us where he made warnings errors.

``warnings.catch_warnings`` and ``filterwarnings`` would make Python forget which of the user's own warnings it has
shown, and show them again: the list of filters is changed itself.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class Silence:
    """Ignore warnings from here on, before whatever filter the user has set, until ``remove``."""

    def __init__(self, message: str = "") -> None:
        """Ignore those that begin like this regular expression; all of them where it is empty."""
        self._filters: list[object] = warnings.filters  # type: ignore[assignment]
        self._ours = ("ignore", re.compile(message, re.I) if message else None, Warning, None, 0)
        self._filters.insert(0, self._ours)

    def remove(self) -> None:
        """Take it back; a program may have emptied the list itself."""
        if self._ours in self._filters:
            self._filters.remove(self._ours)


@contextmanager
def unheard() -> Iterator[None]:
    """Ignore all warnings in the block."""
    silence = Silence()
    try:
        yield
    finally:
        silence.remove()
