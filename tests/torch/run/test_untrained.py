"""What is said where no training was seen must be true."""

from __future__ import annotations

from pathlib import Path

import pytest

from unvanish.torch import script
from unvanish.torch.run.untrained import explained
from unvanish.torch.run.watch import Watch

pytestmark = pytest.mark.usefixtures("interpreter")
PROGRAMS = Path(__file__).parents[2] / "programs"


def test_a_message_says_what_is_known() -> None:
    watch = Watch(lambda *_: None, lambda _: None, None)
    assert "x.py: backward() was never called and no optimizer made a step. Expected" in explained(watch, "x.py", 0.0)
    assert "worked for 4 s: only the main thread of the main process is watched" in explained(watch, "x.py", 4.2)
    watch.backwards = 3
    assert "x.py: backward() was called 3 times but no optimizer made a step." in explained(watch, "x.py", 0.0)


def test_a_watch_that_broke_does_not_say_that_nothing_was_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Watch, "backward_begins", None)
    assert script.run(str(PROGRAMS / "habits.py"), ["retain"]) == 2
    said = capsys.readouterr().err
    assert "stopped watching because of an error of its own" in said
    assert "no training was seen" not in said
