"""Keras' and optax' own test files, from their wheels, with our RMSprop in the place of theirs.

Each runs in a process of its own; a wrong formula must fail them, or the replacement would not be proved.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ADAPTERS = Path(__file__).parent


def suite(tmp_path, package, test_file, adapter, select, **environment):
    """Run a test file of an installed package; returns (exit code, output)."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    source = Path(spec.origin).parent / test_file
    if not source.exists():
        pytest.skip(f"this {package} ships no {test_file}")
    (tmp_path / f"test_{source.name}").write_text(source.read_text())
    paths = [str(ADAPTERS), *filter(None, [os.environ.get("PYTHONPATH")]), str(ADAPTERS.parents[2] / "src")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", adapter, "-p", "no:cacheprovider", "-k", select, "--rootdir", "."]
        + ["-W", "ignore", f"test_{source.name}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("wrong", ["", "eps"])
def test_keras_rmsprop_tests(tmp_path, wrong):
    code, output = suite(
        tmp_path, "keras", "src/optimizers/rmsprop_test.py", "rmsprop_keras_adapter", "test",
        KERAS_BACKEND="torch", UNVANISH_WRONG=wrong,
    )  # fmt: skip
    if wrong:
        assert code == 1, output
        assert "test_correctness_with_golden" in output
    else:
        assert code == 0, output
        assert "6 passed" in output


def test_keras_optimizer_tests(tmp_path):
    code, output = suite(
        tmp_path, "keras", "src/optimizers/optimizer_test.py", "rmsprop_keras_adapter",
        "test_gradient_accumulation_with_weigth_decay or test_pickleable",
        KERAS_BACKEND="torch", UNVANISH_WRONG="",
    )  # fmt: skip
    assert code == 0, output


@pytest.mark.parametrize("wrong", ["", "eps"])
def test_optax_rms_tests(tmp_path, wrong):
    code, output = suite(
        tmp_path, "optax", "_src/transform_test.py", "rmsprop_optax_adapter", "rms_match_adam or scalers_rms",
        JAX_PLATFORMS="cpu", UNVANISH_WRONG=wrong,
    )  # fmt: skip
    if wrong:
        assert code == 1, output
        assert "test_rms_match_adam" in output
    else:
        assert code == 0, output
