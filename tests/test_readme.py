"""What the README says is so: its Python runs, its table is that of the rules, its report is a real one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unvanish
from unvanish import cli, units

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
SOURCE = Path(unvanish.__file__).parent.parent
WRITTEN_BY_BENCHMARKS = {"benchmarks/RESULTS.md"}

FAULTS = {
    "deep_sigmoid.py": "initialization",
    "softmax_twice.py": "loss-mismatch",
    "forgotten_encoder.py": "disconnected",
    "raw_features.py": "input-scale",
}
CURES = {"article_rmsprop.py", "article_rmsprop_torch.py", "six_ways.py"}  # run by test_examples.py


def shell(*args):
    """The real program, from the root of the project as the README does."""
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from unvanish.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Every example, run as its docstring says."""
    shown = {}
    for name in FAULTS:
        command = re.search(r"^unvanish (.+)$", (ROOT / "examples" / name).read_text(), re.MULTILINE)[1]
        shown[name] = shell(*command.split())
    return shown


def test_the_python_blocks_run_one_after_the_other(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    threads = torch.get_num_threads()
    names = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        for block in blocks:
            exec(compile(block, "README.md", "exec"), names)
    torch.set_num_threads(threads)
    assert "unvanish: loss-mismatch in loss" in capsys.readouterr().out


def test_the_table_of_causes_is_that_of_the_rules():
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", README, re.MULTILINE)
    assert rows == [(rule.cause, rule.title) for rule in units.rules()]


def test_every_example_is_tested():
    examples = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert examples == {*FAULTS, *CURES}
    told = (ROOT / "tests" / "test_examples.py").read_text(encoding="utf-8")
    assert all(name in told for name in CURES)


@pytest.mark.parametrize("name", FAULTS)
def test_an_example_shows_its_fault(found, name):
    done = found[name]
    assert done.returncode == 1, done.stderr
    assert f"unvanish: {FAULTS[name]} in " in done.stdout + done.stderr


def test_the_report_shown_is_the_one_that_is_printed(found):
    """Words are compared, numbers are not: they differ from machine to machine."""
    shown = re.search(r"^```\n\$ unvanish run examples/deep_sigmoid.py\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    printed = found["deep_sigmoid.py"].stderr
    report = printed[printed.index("unvanish: initialization") :]
    assert _words(shown[shown.index("unvanish: initialization") :]) == _words(report)


def _words(report):
    return re.findall(r"[A-Za-z_.:]{2,}", re.sub(r"[-+]?\d[\d.e+-]*", "", report))


def test_commands_and_flags_in_the_readme_exist():
    commands = set(re.findall(r"^unvanish (\w+)", README, re.MULTILINE))
    assert commands == {command.name or command.callback.__name__ for command in cli.app.registered_commands}


def test_links_lead_somewhere():
    links = {link for link in re.findall(r"\[[^]]+\]\(([^)#]+)\)", PROSE) if "://" not in link}
    assert {link for link in links - WRITTEN_BY_BENCHMARKS if not (ROOT / link).exists()} == set()
