"""Keras' and optax' own test files, from their wheels, with our RMSprop in the place of theirs.

Each package runs in a process of its own, and runs its files twice: with a wrong formula they must fail, or the
replacement would not be proved.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # importing Keras or JAX takes most of it
HERE = Path(__file__).parent


def suite(tmp_path, package, files, select, **environment):
    """Run test files of an installed package, and again with a wrong formula; returns (failed tests, output)."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    for file in files:
        source = Path(spec.origin).parent / file
        if not source.exists():
            pytest.skip(f"this {package} ships no {file}")
        (tmp_path / f"right_{source.name}").write_text(source.read_text())
        (tmp_path / f"wrong_{source.name}").write_text(source.read_text())
    paths = [str(HERE), str(HERE.parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    command = ["-m", "pytest", "-q", "-rf", "--tb=line", "-p", f"rmsprop_{package}_adapter", "-p", "no:cacheprovider"]
    command += ["-W", "ignore", "-k", select, "--rootdir", ".", *sorted(path.name for path in tmp_path.iterdir())]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1, output  # some failed: the wrong ones have to
    return {line.split()[1].split("::")[-1] for line in output.splitlines() if line.startswith("FAILED wrong_")}, output


def test_keras(tmp_path):
    files = ["src/optimizers/rmsprop_test.py", "src/optimizers/optimizer_test.py"]
    failed, output = suite(tmp_path, "keras", files, "RMSpropTest or weigth_decay or pickleable", KERAS_BACKEND="torch")
    assert "FAILED right_" not in output, output
    assert {"test_correctness_with_golden", "test_single_step"} <= failed, output


def test_optax(tmp_path):
    """In float64: the bias correction of optax in float32, 1 - 0.999**t, is wrong by 5e-5 at the first step."""
    files = ["_src/transform_test.py"]
    failed, output = suite(
        tmp_path, "optax", files, "rms_match_adam or scalers_rmsprop", JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1"
    )
    assert "FAILED right_" not in output, output
    assert failed == {"test_rms_match_adam"}, output
