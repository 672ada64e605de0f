"""Where we write while a script runs, whatever it does to Python's own streams, and silence where it runs again."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def own_stderr() -> Iterator[TextIO]:
    """A stream to where stderr leads now: a script may put a logger in its place, or close it."""
    try:
        number, encoding = os.dup(sys.stderr.fileno()), sys.stderr.encoding
    except (AttributeError, OSError, ValueError):  # there is none, or none of the system's
        yield sys.stderr or io.StringIO()
        return
    with os.fdopen(number, "w", buffering=1, encoding=encoding, errors="replace") as stream:
        yield stream


def flush_stdout() -> None:
    """What the script printed comes before what we say; it may have put anything in the place of stdout."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()


@contextlib.contextmanager
def unprinted() -> Iterator[None]:
    """What the user's network prints when we run it once more is not printed: stdout is the script's own."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
