"""The public surface is frozen here: to change it is a decision, made by changing this file too."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import unvanish
from unvanish import cli

SOURCE = Path(unvanish.__file__).parent.parent
FRAMEWORKS = ("torch", "keras", "tensorflow", "jax", "transformers", "sklearn")

NAMES = {"Diagnosis", "Finding", "Flow", "__version__", "diagnose"}
CURES = {  # each usable alone: from unvanish.torch.clip import AutoClip
    "centered": {"CenteredUpdates"},
    "clip": {
        "AutoClip",
        "ClipReport",
        "NonFinite",
        "ZClip",
        "clip_grad_global_norm_",
        "clip_grad_tensor_norm_",
        "clip_grad_unit_norm_",
        "clip_grad_value_",
    },
    "gradcheck": {
        "Failure",
        "GradientCheck",
        "LossCheck",
        "ModuleCheck",
        "Skipped",
        "gradcheck",
        "gradcheck_function",
    },
    "init": {
        "Action",
        "Initialization",
        "Vitals",
        "chrono_",
        "he_",
        "initialize_",
        "learning_rate",
        "lsuv_",
        "mirrored_",
        "operating_point_",
        "orthogonal_",
        "xavier_",
    },
    "normalize": {
        "ChannelsLast",
        "FeaturesLast",
        "Inserted",
        "LeftOut",
        "NormalizationReport",
        "insert_normalization_",
    },
    "regularize": {"JacobianRegularizer", "OmegaRegularizer", "SoftOrthogonality", "SpectralIsometry"},
    "reset": {
        "AbstractScore",
        "Dead",
        "Dormant",
        "LowUtility",
        "NotResettable",
        "ResetEvent",
        "ResetReport",
        "Saturated",
        "SelfNormalized",
        "UnitReset",
        "reset_vanished_gradients_",
    },
    "rmsprop": {"RMSprop", "gradient_floor"},
}
COMMANDS = {
    "run": {"SCRIPT", "ARGS", "--steps", "--json", "-m"},
    "diagnose": {"FILE.py:FACTORY", "--steps", "--json"},
    "explain": {"CAUSE"},
    "demo": set(),
}


def test_public_names():
    assert set(unvanish.__all__) == NAMES
    assert len(NAMES) <= 12


@pytest.mark.parametrize("cure", CURES)
def test_names_of_the_cures(cure):
    assert set(importlib.import_module(f"unvanish.torch.{cure}").__all__) == CURES[cure]


def test_commands_and_their_flags():
    group = typer.main.get_command(cli.app)
    shown = {
        name: {option for parameter in command.params for option in parameter.opts or ()}
        for name, command in group.commands.items()
    }
    # Arguments are known by the word the help shows for them, options by their flags.
    for name, command in group.commands.items():
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        shown[name] -= {option for argument in arguments for option in argument.opts}
        shown[name] |= {argument.metavar for argument in arguments}
    assert shown == COMMANDS
    assert {option for parameter in group.params for option in parameter.opts} == {"--version"}


def loaded_after(statement):
    """The modules a fresh Python has loaded after the statement."""
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["unvanish", "unvanish.cli", "unvanish.report.text", "unvanish.report.explain"])
def test_importing_us_imports_no_framework(module):
    loaded = loaded_after(f"import {module}")
    assert module in loaded
    assert not loaded & set(FRAMEWORKS)


def test_listing_the_causes_imports_no_framework():
    assert not loaded_after("from unvanish.units import rules; rules()") & set(FRAMEWORKS)
