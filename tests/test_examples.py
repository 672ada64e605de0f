"""The examples run as a reader would run them, and Keras' RMSprop and ours follow the same loss curve."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
# Trains the Keras program on given data, and saves the weights it began with and the losses. TensorFlow stays out of
# the tests' own process.
KERAS_RUN = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import article_rmsprop as article
article.keras.utils.set_random_seed(int(sys.argv[2]))
model = article.create_model()
data = np.random.default_rng(int(sys.argv[2]))
x, y = (data.standard_normal((article.SAMPLES, n)).astype("float32") for n in (article.FEATURES, 1))
weights = [w.copy() for w in model.get_weights()]
losses = article.train(model, article.rmsprop_optimizer(), x, y)
np.savez(sys.argv[3], *weights, x=x, y=y, losses=losses, after=model(x).numpy())
"""


def run(*command):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("program", ["article_rmsprop.py", "article_rmsprop_torch.py"])
def test_the_articles_program_prints_each_epoch_and_a_prediction(program):
    *epochs, prediction = run(EXAMPLES / program)
    found = [re.fullmatch(r"Epoch (\d+), Loss: (\S+)", line) for line in epochs]
    assert [int(line[1]) for line in found] == list(range(1, 101))
    assert float(found[-1][2]) < float(found[0][2])
    assert np.isfinite(float(prediction.removeprefix("Prediction: ")))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_keras_and_our_rmsprop_follow_the_same_curve(seed, tmp_path, capsys):
    run("-c", KERAS_RUN, EXAMPLES, str(seed), tmp_path / "keras.npz")
    keras = np.load(tmp_path / "keras.npz")
    twin = runpy.run_path(str(EXAMPLES / "article_rmsprop_torch.py"))
    model = twin["create_model"]()
    with torch.no_grad():
        for parameter, index in zip(model.parameters(), range(4), strict=True):
            parameter.copy_(torch.from_numpy(keras[f"arr_{index}"].T))
    x, y = torch.from_numpy(keras["x"]), torch.from_numpy(keras["y"])
    losses = twin["train"](model, twin["rmsprop_optimizer"](model.parameters()), x, y)
    assert len(losses) == 100
    assert losses[-1] < 0.9 * losses[0]  # the curve goes somewhere: two constants would agree as well
    np.testing.assert_allclose(losses, keras["losses"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(model(x).detach().numpy(), keras["after"], rtol=0, atol=1e-4)


def test_six_ways_tells_what_each_does(monkeypatch, tmp_path, capsys):
    """A short run: the first layer's gradient is what each way makes of it, the table has them all."""
    six = runpy.run_path(str(EXAMPLES / "six_ways.py"))
    scope = six["main"].__globals__
    monkeypatch.setitem(scope, "STEPS", 3)
    monkeypatch.setitem(scope, "SEEDS", (0, 1))
    monkeypatch.setitem(scope, "WAYS", tuple((name, changes, rates[:1]) for name, changes, rates in six["WAYS"]))
    monkeypatch.setattr(sys, "argv", ["six_ways.py", "--picture", str(tmp_path / "ways.png")])
    monkeypatch.setenv("COLUMNS", "200")
    six["main"]()
    shown = capsys.readouterr().out
    assert all(name in shown for name, *_ in six["WAYS"])
    assert (tmp_path / "ways.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("way", "alive"), [("as_it_is", False), ("xavier", False), ("operating_point", True), ("batch_norm", True)]
)
def test_which_ways_bring_the_gradient_to_the_first_layer(monkeypatch, way, alive):
    """At the start of training, against float64 autograd on the very same weights."""
    six = runpy.run_path(str(EXAMPLES / "six_ways.py"))
    monkeypatch.setitem(six["run"].__globals__, "STEPS", 0)
    kept = []
    result = six["run"]((six[way], kept.append), 0.1, 0)
    model, x, y = kept[0].model.double().train(), kept[0].x.double(), kept[0].y
    loss = torch.nn.functional.cross_entropy(model(x), y)
    first = torch.autograd.grad(loss, model[0].weight)[0].norm().item()
    assert result.start[0] == pytest.approx(first, rel=1e-2)
    assert (first > 1e-3) == alive
