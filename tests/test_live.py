"""The status while a script runs: one row, rewritten, on a terminal; plain lines in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path

import pytest

from unvanish.report.live import Live
from unvanish.types import Parameter

PROGRAMS = Path(__file__).parent / "programs"
SOURCE = Path(__file__).parents[1] / "src"
ENDS = (Parameter("first.weight", (4, 4), log_grad=-20.0), Parameter("last.weight", (4, 4), log_grad=0.0))


class Terminal(StringIO):
    """One that keeps what it is sent."""

    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_plain_lines() -> None:
    stream = StringIO()
    live = Live(stream)
    live.step("", 5, 2.5, ENDS)
    live.say("stopped")
    first, second = stream.getvalue().splitlines()
    assert first == "unvanish: step 5, loss 2.5, gradient first layer 2.1e-09, last layer 1.0e+00"
    assert second == "unvanish: stopped"


@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_gets_one_row_that_is_rewritten(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        live = Live(stream)
        live.step("", 5, 2.5, ENDS)
        live.step("", 10, 2.25, ENDS)
        stream.flush()
        raw = ""
        while "step 10" not in raw or not raw.endswith("\r"):
            raw += os.read(leader, 4096).decode()
    os.close(leader)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", raw)
    rows = [row for row in shown.split("\r") if row.strip()]
    assert "\n" not in shown
    assert shown.endswith("\r")
    assert len(rows) == 2
    assert all(len(row) < columns for row in rows)
    assert "step 5" in rows[0]
    assert "step 10" in rows[1]


def screen(raw: str, columns: int) -> list[str]:
    """The rows that a terminal shows after these bytes; of its commands, colours and "erase the rest of the row"."""
    rows, at = [[" "] * columns], 0
    for escape, command, character in re.findall(r"(\x1b\[[0-9;?]*([A-Za-z]))|(.)", raw, flags=re.DOTALL):
        if escape:
            assert command in "mK", escape
            assert escape[2:-1] in "0" or command == "m"
            rows[-1][at:] = [" "] * (columns - at) if command == "K" else rows[-1][at:]
        elif character == "\r":
            at = 0
        elif character == "\n":
            rows.append([" "] * columns)
        else:
            if at == columns:
                at = 0
                rows.append([" "] * columns)
            rows[-1][at] = character
            at += 1
    return ["".join(row).rstrip() for row in rows]


def shown(*arguments: str, columns: int) -> list[str]:
    """What a terminal shows of a Python program."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    environment.pop("COLUMNS", None)
    raw = b""
    with subprocess.Popen([sys.executable, *arguments], stdout=follower, stderr=follower, env=environment):
        os.close(follower)
        try:
            while part := os.read(leader, 4096):
                raw += part
        except OSError:  # Linux says so when the other end is closed
            pass
    os.close(leader)
    return screen(raw.decode(), columns)


def test_nothing_of_the_status_stays_beside_what_comes_next() -> None:
    rows = shown("-m", "unvanish", "run", "--steps", "11", str(PROGRAMS / "digits.py"), columns=100)
    (said,) = [row for row in rows if "wanted number" in row]
    assert said == "unvanish: the wanted number of steps is done, the script was stopped"
    rows = shown("-m", "unvanish", "run", str(PROGRAMS / "habits.py"), "raises", columns=100)
    (first,) = [row for row in rows if "Traceback" in row]
    assert first == "Traceback (most recent call last):"


def test_a_line_the_script_has_begun_stays() -> None:
    stream = Terminal()
    live = Live(stream)
    live.step("", 5, 2.5, ENDS)
    stream.write("epoch 1 ")
    live.clear()
    stream.write("and now\r\n")
    assert screen(stream.getvalue(), 80) == ["epoch 1 and now", ""]


def test_what_is_said_on_a_terminal_is_said_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    words = [f"word{index}" for index in range(30)]
    Live(stream).say(" ".join(words))
    assert set(words) <= set(re.sub(r"\x1b\[[0-9;]*[mK]", "", stream.getvalue()).split())
