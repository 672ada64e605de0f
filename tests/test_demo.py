"""The demo tells the truth: it measures everything, ends well for any seed, and says what is missing."""

import builtins

import pytest
import torch

from unvanish.torch import demo


@pytest.fixture(scope="module")
def shown():
    """What the demo prints, played once, and what it leaves behind."""
    lines = []
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "_say", lines.append)
    patch.setenv("COLUMNS", "80")
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    code = demo.main()
    patch.undo()
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    return code, "\n".join(lines)


def test_it_exits_with_zero_whatever_it_finds(shown):
    assert shown[0] == 0


def test_the_first_network_guesses_and_the_cause_is_named(shown):
    first, _, _ = shown[1].partition("Act 2")
    epochs = [line.split() for line in first.splitlines() if line.strip()[:2].strip().isdigit() and "%" in line]
    losses, accuracies = [float(e[1]) for e in epochs[-3:]], [float(e[2].rstrip("%")) for e in epochs[-3:]]
    assert min(losses) > 2.25
    assert max(accuracies) < 15
    assert "unvanish: initialization in layers.1" in first
    assert "log10 of the gradient norm" in first


def test_the_cure_trains_and_is_called_healthy(shown):
    _, _, second = shown[1].partition("Act 2")
    assert "unvanish: the network is healthy" in second
    _, _, verdict = second.partition("test accuracy 10")
    assert float(verdict.split("-> ")[1].split("%")[0]) > 90
    assert "before" in second
    assert "after" in second


def test_the_code_on_screen_is_the_code_that_runs(shown):
    assert "self.head = nn.Linear(width, 10)" in shown[1]
    assert "nn.init.orthogonal_(layer.weight, gain)" in shown[1]
    assert "noqa" not in shown[1]
    assert "type: ignore" not in shown[1]


def test_it_fits_a_terminal_of_eighty_columns(shown):
    acts = shown[1].splitlines()
    assert max(map(len, acts)) <= 80, max(acts, key=len)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def no_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    with pytest.raises(ValueError, match=r'pip install "unvanish\[demo\]"'):
        demo.main()
