"""What is said while the user's script runs: a line at each probed step, on stderr, never on its stdout."""

from __future__ import annotations

import math
from typing import TextIO

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from unvanish.types import Parameter


class Live:
    """One status line on a terminal, rewritten in place; plain lines in a pipe (few: probed steps are rare).

    The status stands at the right edge of the terminal's last row and leaves the cursor at its left edge, so that the
    script's own next output is written over its blank part and nothing of the script's is lost. What we say after it
    ourselves takes its place.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        self.stream = stream

    def say(self, text: str) -> None:
        """Words, in as many rows as they take."""
        self._write(Text.assemble(("unvanish: ", "bold cyan"), text))

    def step(self, who: str, index: int, loss: float, parameters: tuple[Parameter, ...]) -> None:
        """One probed step: the loss and the gradient at the two ends of the network."""
        line = Text.assemble(("unvanish: ", "bold cyan"), f"{who}step {index}, loss {loss:.4g}")
        ends = gradient_ends(parameters)
        if ends is not None:
            sick = math.isnan(ends[0]) or ends[0] < 1e-4 * ends[1]
            line.append(", gradient first layer ")
            line.append(f"{ends[0]:.1e}", "bold red" if sick else "green")
            line.append(f", last layer {ends[1]:.1e}")
        self._write(line, status=True)

    def clear(self) -> None:
        """Take the status away: something else than the script writes next."""
        if self.stream.isatty():
            _console(self.stream).control(_REST_OF_ROW)

    def _write(self, line: Text, status: bool = False) -> None:
        if not self.stream.isatty():
            self.stream.write(f"{line.plain}\n")
            self.stream.flush()
            return
        console = _console(self.stream)
        if not status:
            console.control(_REST_OF_ROW)
            console.print(line)
            return
        line.truncate(console.width - 1, overflow="ellipsis")
        line.align("right", console.width - 1)
        console.print(line, overflow="ellipsis", no_wrap=True, end="\r")


_REST_OF_ROW = Control((ControlType.ERASE_IN_LINE, 0))  # from the cursor on: left of it the script may have written


def _console(stream: TextIO) -> Console:
    return Console(file=stream, highlight=False)


def gradient_ends(parameters: tuple[Parameter, ...]) -> tuple[float, float] | None:
    """||gradient|| of the first and of the last weight matrix that has one; None for fewer than two."""
    logs = [p.log_grad for p in parameters if p.log_grad is not None and len(p.shape) > 1]
    if len(logs) < 2:
        return None
    return _norm(logs[0]), _norm(logs[-1])


def _norm(log: float) -> float:
    return math.exp(min(log, 700.0))
