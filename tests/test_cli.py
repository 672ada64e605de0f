"""The commands: what they print, what they write, how they exit, and whose error is shown how."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
from typer.testing import CliRunner

import unvanish
import unvanish.torch
from unvanish import cli, units
from unvanish.diagnosis import Diagnosis
from unvanish.types import Evidence, Finding, Flow, LossView

FLOW = Flow((), (), LossView(0.7))
FINDING = Finding(
    "depth", ("net.0",), 0.8, "high", (Evidence("loss", 1.0, "decades", "0"),), "It is deep.", ("Skip.",), "He 2015"
)
SOURCE = Path(unvanish.__file__).parent.parent


@dataclass(frozen=True)
class Plain(units.AbstractRule):
    """Signals decay with depth.

    Recognised by the slope.

    Cured by skips.
    """

    slope: float = 0.25
    cause: ClassVar = "depth"
    title: ClassVar = "plain depth alone loses the signal"
    source: ClassVar = "He et al. 2015"
    remedies: ClassVar = ("Add residual connections.", "Use fewer layers.")

    def check(self, flow):
        del flow

    @classmethod
    def healthy(cls):
        return ()

    @classmethod
    def sick(cls):
        return ()


def call(*args):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def shell(*args, cwd):
    """The real program, in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from unvanish.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *args], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def diagnosed(monkeypatch):
    """Stands in for the measuring: remembers its arguments, returns what the test wants."""
    calls = []

    def prepare(*findings):
        def fake(**arguments):
            calls.append(arguments)
            return Diagnosis(findings, FLOW)

        monkeypatch.setattr("unvanish.flow.diagnose", fake)
        return calls

    return prepare


@pytest.fixture
def make(tmp_path):
    def write(body, name="net_file.py"):
        path = tmp_path / name
        path.write_text(body)
        return f"{path}:make"

    yield write
    sys.modules.pop("net_file", None)
    if sys.path[0] == str(tmp_path):
        sys.path.pop(0)


def test_version():
    assert call("--version").output == f"unvanish {unvanish.__version__}\n"


def test_healthy_exits_with_zero(diagnosed, make):
    calls = diagnosed()
    result = call("diagnose", make("def make(): return 'model', 'loss', 'data'"))
    assert (result.exit_code, result.output) == (0, "unvanish: no fault found\n")  # learning was not tried
    assert calls == [{"model": "model", "loss_fn": "loss", "batches": "data"}]


def test_findings_exit_with_one_and_are_written_as_json(diagnosed, make, tmp_path):
    diagnosed(FINDING)
    target = tmp_path / "found.json"
    result = call("diagnose", make("def make(): return 1, 2, 3, 4"), "--json", target)
    assert result.exit_code == 1
    assert "unvanish: depth in net.0" in result.output
    assert Diagnosis.from_json(target.read_text()) == Diagnosis((FINDING,), FLOW)


@pytest.mark.parametrize(
    ("returned", "options", "arguments"),
    [
        ("(1, 2, 3, 4)", [], {"model": 1, "loss_fn": 2, "batches": 3, "optimizer": 4}),
        ("dict(model=1, objective=2, batches=3)", [], {"model": 1, "objective": 2, "batches": 3}),
        ("dict(model=1, steps=9)", ["--steps", 5], {"model": 1, "steps": 5}),
    ],
)
def test_what_a_factory_may_return(diagnosed, make, returned, options, arguments):
    calls = diagnosed()
    assert call("diagnose", make(f"def make(): return {returned}"), *options).exit_code == 0
    assert calls == [arguments]


@pytest.mark.parametrize("returned", ["None", "(1, 2)", "dict(loss_fn=1)", "dict(model=1, data=2)", "[1, 2, 3]"])
def test_any_other_return_is_refused_in_three_parts(diagnosed, make, returned):
    diagnosed()
    result = call("diagnose", make(f"def make(): return {returned}"))
    assert result.exit_code == 2
    assert result.stderr.startswith("unvanish: The factory returned ")
    assert "Expected" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_factory_imports_its_neighbours_and_shadows_nothing(diagnosed, make, tmp_path):
    calls = diagnosed()
    (tmp_path / "neighbour_of_json.py").write_text("value = 7")
    call("diagnose", make("import neighbour_of_json as n\ndef make(): return n.value, 0, 0", "json.py"))
    assert calls[0]["model"] == 7
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("train.py", "'train.py' does not name a factory. Expected FILE.py:FACTORY"),
        ("nowhere.py:make", "There is no file 'nowhere.py'"),
        ("{file}:other", "has no function 'other'. Expected a function without arguments. It defines: make."),
    ],
)
def test_a_wrong_target_is_refused(target, words, make):
    file = make("import os\nfrom json import loads\ndef make(): pass\ndef _hidden(): pass").removesuffix(":make")
    result = call("diagnose", target.format(file=file))
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_the_users_own_error_is_shown_whole(make):
    result = call("diagnose", make("def make():\n    raise ValueError('my own mistake')"))
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "ValueError: my own mistake" in result.stderr
    assert "line 2, in make" in result.stderr


def test_our_refusal_is_one_message_and_keeps_the_users_cause(monkeypatch, make):
    # The module name decides whose error it is, so the stand-in runs as a module of the package.
    module = {"__name__": "unvanish.stand_in"}
    exec(
        "def refuse(**_):\n  try: 1/0\n  except Exception as e: raise ValueError('Loss raised. Mend it.') from e",
        module,
    )
    monkeypatch.setattr("unvanish.flow.diagnose", module["refuse"])
    result = call("diagnose", make("def make(): return 1, 2, 3"))
    assert result.exit_code == 2
    assert result.stderr.endswith("unvanish: Loss raised. Mend it.\n")
    assert "ZeroDivisionError" in result.stderr
    assert "ValueError" not in result.stderr


def test_a_missing_framework_is_named_with_its_install_command(make):
    result = call("diagnose", make("def make():\n    raise ModuleNotFoundError('No module', name='torch')"))
    assert result.exit_code == 2
    assert 'pip install "unvanish[torch]"' in result.stderr


def test_json_into_a_missing_folder_is_refused_before_anything_runs(make, tmp_path):
    result = call("diagnose", make("raise SystemExit('was run')"), "--json", tmp_path / "none" / "x.json")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


@pytest.fixture
def script(monkeypatch):
    """Stands in for the runner of scripts."""
    calls = []

    def run(*args, **options):
        calls.append((args, options))
        return 7

    fake = ModuleType("unvanish.torch.script")
    fake.run = run
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(unvanish.torch, "script", fake, raising=False)
    return calls


@pytest.mark.parametrize("rest", [[], ["--steps", "9", "-m", "--help"], ["--", "--json", "x"], ["a", "--", "b"]])
def test_everything_after_the_script_is_the_scripts(script, rest):
    assert call("run", "--steps", 3, "train.py", *rest).exit_code == 7
    assert script == [(("train.py", rest), {"module": False, "steps": 3, "json_path": None})]


def test_run_a_module(script, tmp_path):
    target = tmp_path / "out.json"
    call("run", "--json", target, "-m", "package.train", "-m")
    assert script == [(("package.train", ["-m"]), {"module": True, "steps": None, "json_path": target})]


@pytest.mark.parametrize(
    "args", [["run"], ["run", "--step", "3", "x.py"], ["run", "--steps", "0", "x.py"], ["nonsense"]]
)
def test_wrong_usage_exits_with_two(args):
    assert call(*args).exit_code == 2


def test_demo_returns_its_own_code(monkeypatch):
    fake = ModuleType("unvanish.torch.demo")
    fake.main = lambda: 0
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(unvanish.torch, "demo", fake, raising=False)
    assert call("demo").exit_code == 0


def test_explain_lists_causes(monkeypatch):
    monkeypatch.setattr(cli, "rules", lambda: (Plain(),))
    output = call("explain").output
    assert "  depth  plain depth alone loses the signal\n" in output


def test_explain_prints_the_rules_own_page(monkeypatch):
    monkeypatch.setattr(cli, "rules", lambda: (Plain(),))
    lines = call("explain", "depth").output.splitlines()
    assert lines[0] == "depth: plain depth alone loses the signal"
    assert {"Recognised by the slope.", "  slope = 0.25", "  2. Use fewer layers.", "Source: He et al. 2015"} <= set(
        lines
    )


def test_explain_of_an_unknown_cause_names_the_known_ones(monkeypatch):
    monkeypatch.setattr(cli, "rules", lambda: (Plain(),))
    result = call("explain", "bad-luck")
    assert result.exit_code == 2
    assert result.stderr == (
        "unvanish: There is no cause 'bad-luck'. Expected one of depth. See them all with: unvanish explain\n"
    )


def test_the_real_program_shows_a_users_traceback_and_exits_with_two(tmp_path):
    (tmp_path / "broken.py").write_text("def make():\n    return {}['weights']\n")
    done = shell("diagnose", "broken.py:make", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "KeyError: 'weights'" in done.stderr


def test_python_dash_m(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "unvanish", "--version"], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"unvanish {unvanish.__version__}\n"
