"""The presets against the installed libraries themselves, in float64, with gradients down to 1e-9."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from unvanish.torch.rmsprop import RMSprop

STEPS, SIZE = 8, 12


def gradients():
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(1, -9, SIZE, dtype=torch.float64)
    return [torch.randn(SIZE, generator=generator, dtype=torch.float64) * scale for _ in range(STEPS)]


def start():
    return torch.linspace(-1, 1, SIZE, dtype=torch.float64)


def ours(library, way=None, **settings):
    w = start()
    optimizer = RMSprop.like(library, [w], **settings, **(way or {}))
    rows = []
    for g in gradients():
        w.grad = g
        optimizer.step()
        rows.append(w.clone())
    return torch.stack(rows)


def near(rows, expected, tolerance=1e-12):
    torch.testing.assert_close(rows, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


OPTAX = [
    ({}, {}),
    ({"eps_in_sqrt": False}, {"eps_inside": False}),
    ({"initial_scale": 1.0, "decay": 0.5}, {"initial_accumulator": 1.0, "rho": 0.5}),
    ({"bias_correction": True}, {"bias_correction": True}),
    ({"centered": True, "initial_scale": 0.1}, {"centered": True, "initial_accumulator": 0.1}),
    ({"momentum": 0.9}, {"momentum": 0.9}),
    ({"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
    (
        {"momentum": 0.5, "nesterov": True, "bias_correction": True, "eps_in_sqrt": False},
        {"momentum": 0.5, "nesterov": True, "bias_correction": True, "eps_inside": False},
    ),
]

OPTAX_PROGRAM = """
import json, sys
import jax, optax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
start, gradients, cases = json.load(sys.stdin)
out = []
for case in cases:
    rows, w, o = [], jnp.array(start), optax.rmsprop(1e-3, **case)
    state = o.init(w)
    for g in gradients:
        updates, state = o.update(jnp.array(g), state)
        w = optax.apply_updates(w, updates)
        rows.append(w.tolist())
    out.append(rows)
json.dump(out, sys.stdout)
"""

# Keras keeps the learning rate, and multiplies the decay by it, in float32: numbers that are exact there
RATE = 2.0**-10
KERAS = [
    ({}, {}),
    ({"momentum": 0.9}, {"momentum": 0.9}),
    ({"centered": True}, {"centered": True}),
    ({"weight_decay": 2.0**-3}, {"weight_decay": 2.0**-3}),
    ({"global_clipnorm": 0.5}, {"clip": 0.5}),
    (
        {"rho": 0.5, "epsilon": 1e-4, "momentum": 0.5, "centered": True, "weight_decay": 2.0**-7},
        {"rho": 0.5, "eps": 1e-4, "momentum": 0.5, "centered": True, "weight_decay": 2.0**-7},
    ),
]

KERAS_PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
import keras, numpy as np
keras.config.set_floatx("float64")
start, gradients, cases = json.load(sys.stdin)
out = []
for case in cases:
    rows, w, o = [], keras.Variable(np.array(start)), keras.optimizers.RMSprop(2.0**-10, **case)
    for g in gradients:
        o.apply([keras.ops.convert_to_tensor(np.array(g))], [w])
        rows.append(keras.ops.convert_to_numpy(w).tolist())
    out.append(rows)
json.dump(out, sys.stdout)
"""


def run(program, cases, **environment):
    given = json.dumps([start().tolist(), [g.tolist() for g in gradients()], [theirs for theirs, _ in cases]])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        input=given, capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.slow
def test_optax():
    if importlib.util.find_spec("optax") is None:
        pytest.skip("optax is not installed")
    for (_, settings), expected in zip(OPTAX, run(OPTAX_PROGRAM, OPTAX, JAX_PLATFORMS="cpu"), strict=True):
        near(ours("optax", **settings), expected)


@pytest.mark.slow
def test_keras():
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    for (theirs, settings), expected in zip(KERAS, run(KERAS_PROGRAM, KERAS, KERAS_BACKEND="torch"), strict=True):
        # Keras finds the factor of the clipping in float32; ours is tested in test_rmsprop_clip.py
        near(ours("keras", lr=RATE, **settings), expected, 1e-9 if "global_clipnorm" in theirs else 1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"centered": True},
        {"weight_decay": 0.1},
        {"maximize": True, "momentum": 0.5, "centered": True, "weight_decay": 0.01, "eps": 1e-4},
    ],
)
def test_torch(way, settings):
    w = start()
    optimizer = torch.optim.RMSprop([w], **settings)
    rows = []
    for g in gradients():
        w.grad = g
        optimizer.step()
        rows.append(w.clone())
    near(ours("torch", way, **settings), torch.stack(rows))


TIMM = [
    ({}, {}),
    ({"momentum": 0.9}, {"momentum": 0.9}),
    ({"momentum": 0.9, "lr_in_momentum": False}, {"momentum": 0.9, "lr_in_momentum": False}),
    ({"centered": True, "eps": 1e-3}, {"centered": True, "eps": 1e-3}),
    ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
    ({"weight_decay": 0.1, "decoupled_decay": True}, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    (
        {"lr": 0.1, "alpha": 0.5, "eps": 1e-4, "momentum": 0.5, "centered": True, "weight_decay": 0.01},
        {"lr": 0.1, "rho": 0.5, "eps": 1e-4, "momentum": 0.5, "centered": True, "weight_decay": 0.01},
    ),
]


@pytest.fixture
def timm_rmsprop():
    """timm's class from its own file: ``import timm`` needs torchvision, this file and those beside it only torch."""
    try:
        files = importlib.metadata.files("timm") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("timm is not installed")
    file = next(file for file in files if file.as_posix() == "timm/optim/rmsprop_tf.py")
    package = sys.modules["timm_optim_alone"] = ModuleType("timm_optim_alone")
    package.__path__ = [str(file.locate().parent)]
    yield importlib.import_module("timm_optim_alone.rmsprop_tf").RMSpropTF
    for name in [name for name in sys.modules if name.startswith("timm_optim_alone")]:
        del sys.modules[name]


@pytest.mark.parametrize(("theirs", "settings"), TIMM, ids=[str(case[0]) for case in TIMM])
@pytest.mark.parametrize("foreach", [True, False])
def test_timm(timm_rmsprop, way, theirs, settings, foreach):
    w = start()
    optimizer = timm_rmsprop([w], foreach=foreach, **theirs)
    rows = []
    for g in gradients():
        w.grad = g
        optimizer.step()
        rows.append(w.clone())
    near(ours("timm", way, **settings), torch.stack(rows))


def test_timm_has_the_defaults_of_the_preset(timm_rmsprop):
    group = timm_rmsprop([start()]).param_groups[0]
    ours = RMSprop.like("timm", [start()]).param_groups[0]
    names = {"lr": "lr", "alpha": "rho", "eps": "eps", "momentum": "momentum", "centered": "centered"}
    names |= {"lr_in_momentum": "lr_in_momentum", "weight_decay": "weight_decay"}
    assert {ours_: group[theirs] for theirs, ours_ in names.items()} == {name: ours[name] for name in names.values()}
    assert group["decoupled_decay"] == ours["decoupled_weight_decay"]
