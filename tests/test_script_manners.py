"""A watched script keeps its streams, its ``__main__`` and its ways to be started, and its report is never lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("torch")
SOURCE = Path(__file__).parents[1] / "src"
TRAIN = """
import torch
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def forward(self, x):
        SAY
        return self.layer(x)
net, x = Net(), torch.randn(16, 4)
optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
for _ in range(12):
    loss = torch.nn.functional.mse_loss(net(x), x[:, :1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
QUIET = TRAIN.replace("SAY", "pass")
LOGGER = """
import sys
class Logger:
    def __init__(self, stream):
        self.stream = stream
    def write(self, text):
        self.stream.write(text)
    def flush(self):
        self.stream.flush()
sys.stdout, sys.stderr = Logger(sys.stdout), Logger(sys.stderr)
"""


def ran(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    environment.pop("OMP_NUM_THREADS", None)
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)


def watched(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(text)
    return ran(folder, "-m", "unvanish", "run", "--json", "found.json", *options, "train.py", "a", "--b")


@pytest.mark.parametrize(
    "habit",
    [
        LOGGER,
        "import sys; sys.stdout = sys.stderr = None",
        "import sys; sys.stdout.close(); sys.stderr.close()",
        "import contextlib, io; contextlib.redirect_stderr(io.StringIO()).__enter__()",
    ],
)
def test_the_report_comes_whatever_a_script_does_to_its_streams(tmp_path: Path, habit: str) -> None:
    done = watched(tmp_path, habit + QUIET)
    assert done.returncode in (0, 1), done.stderr
    assert "stopped watching" not in done.stderr
    assert "loss removed" in done.stderr
    assert json.loads((tmp_path / "found.json").read_text())["flow"]["origin"] == "run"


def test_a_forward_pass_that_prints_prints_as_often_as_without_us(tmp_path: Path) -> None:
    done = watched(tmp_path, TRAIN.replace("SAY", "print(x.shape)"))
    assert done.stdout == ran(tmp_path, "train.py", "a", "--b").stdout
    assert len(done.stdout.splitlines()) == 12


def test_a_syntax_error_is_shown_as_python_shows_it(tmp_path: Path) -> None:
    done, expected = watched(tmp_path, "print('hi'"), ran(tmp_path, "train.py")
    assert done.returncode == expected.returncode == 1
    assert done.stderr == expected.stderr


def test_what_is_left_to_the_end_of_the_process_finds_its_main_module(tmp_path: Path) -> None:
    late = "import atexit, pickle, sys; atexit.register(lambda: print(sys.argv, len(pickle.dumps(Net))))\n"
    done = watched(tmp_path, late + QUIET)
    assert done.stdout == ran(tmp_path, "train.py", "a", "--b").stdout
    assert "['train.py', 'a', '--b']" in done.stdout


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_or_a_zip_file_is_run_as_python_runs_it(tmp_path: Path, packed: bool) -> None:
    target = tmp_path / ("app.zip" if packed else "app")
    say = "import os, sys, helper\nos.chdir('/')\nprint(__name__, __file__, __package__, sys.path[0], sys.argv)\n"
    files = {"__main__.py": say + QUIET, "helper.py": "print('helped')\n"}
    if packed:
        with zipfile.ZipFile(target, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    else:
        target.mkdir()
        for name, text in files.items():
            (target / name).write_text(text)
    done, expected = (ran(tmp_path, *line, target.name, "x") for line in (("-m", "unvanish", "run"), ()))
    assert expected.returncode == 0
    assert done.stdout == expected.stdout
    assert "loss removed" in done.stderr


def test_a_folder_without_a_program_is_refused(tmp_path: Path) -> None:
    done = ran(tmp_path, "-m", "unvanish", "run", ".")
    assert done.returncode == 2
    assert "no __main__.py" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_report_that_cannot_be_written_is_printed_and_said(tmp_path: Path) -> None:
    done = watched(tmp_path, QUIET, "--json", "/dev/full")
    assert done.returncode == 2
    assert "loss removed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "could not be written" in done.stderr


def test_steps_inside_of_backward_are_said_not_to_be_watched(tmp_path: Path) -> None:
    each = """parts = {p: torch.optim.SGD([p], 0.1) for p in net.parameters()}
def step(p):
    parts[p].step()
    parts[p].zero_grad()
for p in parts:
    p.register_post_accumulate_grad_hook(step)
"""
    text = QUIET.replace("for _ in", each + "for _ in").replace("optimizer.step()", "pass")
    done = watched(tmp_path, text)
    assert done.returncode == 2
    assert "inside of backward()" in done.stderr
    assert "times and" not in done.stderr


def test_backward_alone_is_no_training(tmp_path: Path) -> None:
    lines = [line for line in QUIET.splitlines() if "optimizer" not in line]
    done = watched(tmp_path, "\n".join(lines))
    assert done.returncode == 2
    assert "backward() was called 12 times but no optimizer made a step" in done.stderr
    by_hand = "    with torch.no_grad(): [p.sub_(0.1 * p.grad) for p in net.parameters()]; net.zero_grad()"
    assert watched(tmp_path, "\n".join([*lines, by_hand])).returncode in (0, 1)


def test_threads_asked_for_before_the_import_are_those_that_are_used(tmp_path: Path) -> None:
    asked = "import os; os.environ['OMP_NUM_THREADS'] = '1'\nimport torch; print(torch.get_num_threads())\n"
    late = "import torch, os; os.environ['OMP_NUM_THREADS'] = '1'\nprint(torch.get_num_threads())\n"
    for text in (asked, late):
        done = watched(tmp_path, text + QUIET)
        assert done.stdout == ran(tmp_path, "train.py").stdout
