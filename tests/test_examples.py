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
