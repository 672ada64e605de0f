"""The status while a script runs: one row, rewritten, on a terminal; plain lines in a pipe."""

from __future__ import annotations

import os
import pty
import re
from io import StringIO

import pytest

from unvanish.report.live import Live
from unvanish.types import Parameter

ENDS = (Parameter("first.weight", (4, 4), log_grad=-20.0), Parameter("last.weight", (4, 4), log_grad=0.0))


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
