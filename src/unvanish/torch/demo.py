"""``unvanish demo``: a deep network on real digits that does not train, its diagnosis, and the cure applied by hand."""

from __future__ import annotations

import inspect
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from textwrap import indent

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.diagnosis import Diagnosis
from unvanish.flow import diagnose
from unvanish.report.picture import TITLE, compare
from unvanish.report.text import render

EPOCHS = 10
SEED = 0


class Classifier(nn.Module):
    """Thirty sigmoid layers of 64 units."""

    def __init__(self, depth: int = 30, width: int = 64) -> None:
        super().__init__()
        sizes = [64] + [width] * depth
        layers = [nn.Linear(n, m) for n, m in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - shown as users write it
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)  # type: ignore[no-any-return]


def operating_point(model: nn.Module) -> None:
    """Critical orthogonal weights; biases take out the sigmoid's mean."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    first, *others = layers
    # Small numbers go into each sigmoid; what comes out is scaled back up.
    scale = 2 * (0.3 / len(others)) ** 0.25
    gain = scale / torch.sigmoid(scale * torch.randn(100_000)).std().item()
    nn.init.orthogonal_(first.weight, scale)
    nn.init.zeros_(first.bias)
    for layer in others:
        nn.init.orthogonal_(layer.weight, gain)
        layer.bias.data = -0.5 * layer.weight.data.sum(dim=1)


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's 1,797 handwritten digits, standardised, a fifth of them kept for the test."""

    train: list[tuple[Tensor, Tensor]]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Act:
    """What training reached, and what unvanish says about it."""

    loss: float
    accuracy: float
    diagnosis: Diagnosis


def main() -> int:
    """Play both acts on the terminal; every number is measured while you watch. Returns the exit code 0."""
    started = time.perf_counter()
    digits = _digits()
    with _one_thread(), torch.random.fork_rng(devices=[]):
        first, second = _first_act(digits), _second_act(digits)
    _say(f"{TITLE}, on one scale:\n")
    _say(indent(compare(first.diagnosis.flow, second.diagnosis.flow, width=_width() - 2), "  "))
    _say(
        f"\nSame network, data, {EPOCHS} epochs: loss {first.loss:.2f} -> {second.loss:.2f}, "
        f"test accuracy {first.accuracy:.1%} -> {second.accuracy:.1%}.\n"
        f"All of it took {time.perf_counter() - started:.0f} seconds. "
        "Your own script, unchanged: unvanish run train.py"
    )
    return 0


def _first_act(digits: Digits) -> Act:
    torch.manual_seed(SEED)
    _title("Act 1: a deep network, as many people write it, does not train")
    _code(Classifier)
    _say("    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)\n")
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss, accuracy = _train(model, optimizer, digits)
    _say(f"\nGuessing costs ln 10 = {math.log(10):.2f}, right one time in ten: nothing is learnt. Why?\n")
    _say(">>> print(unvanish.diagnose(model, F.cross_entropy, batches, optimizer))\n")
    return Act(loss, accuracy, _diagnose(model, optimizer, digits))


def _second_act(digits: Digits) -> Act:
    torch.manual_seed(SEED)
    _title("Act 2: the cure it names, by hand")
    _code(operating_point)
    _say("    # learning rate 1 / (fan_in x depth)")
    _say("    optimizer = torch.optim.Adam(model.parameters(), lr=1 / (64 * 30))\n")
    model = Classifier()
    operating_point(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1 / (64 * 30))
    loss, accuracy = _train(model, optimizer, digits)
    _say("\n>>> print(unvanish.diagnose(model, F.cross_entropy, batches, optimizer))\n")
    return Act(loss, accuracy, _diagnose(model, optimizer, digits))


def _train(model: Classifier, optimizer: torch.optim.Optimizer, digits: Digits) -> tuple[float, float]:
    """The usual loop; returns the last epoch's mean loss and the accuracy on the test digits."""
    _say("  epoch   loss   test accuracy")
    loss = accuracy = math.nan
    for epoch in range(1, EPOCHS + 1):
        losses = []
        for place in torch.randperm(len(digits.train)).tolist():
            inputs, target = digits.train[place]
            optimizer.zero_grad()
            step_loss = F.cross_entropy(model(inputs), target)
            step_loss.backward()
            optimizer.step()
            losses.append(step_loss.item())
        loss, accuracy = sum(losses) / len(losses), _accuracy(model, digits)
        _say(f"  {epoch:5d}  {loss:5.2f}  {accuracy:14.1%}")
    return loss, accuracy


@torch.no_grad()
def _accuracy(model: Classifier, digits: Digits) -> float:
    inputs, target = digits.test
    return float((model(inputs).argmax(dim=1) == target).double().mean())


def _diagnose(model: Classifier, optimizer: torch.optim.Optimizer, digits: Digits) -> Diagnosis:
    diagnosis = diagnose(model, F.cross_entropy, digits.train, optimizer)
    terminal = Console()
    _say(render(diagnosis, width=_width(), color=terminal.is_terminal and not terminal.no_color) + "\n")
    return diagnosis


def _digits() -> Digits:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ValueError(
            "scikit-learn is not installed here. The demo trains on the handwritten digits that it ships. "
            'Install it with: pip install "unvanish[demo]"'
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=0.2, random_state=SEED, stratify=labels)
    inputs, test_inputs = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    target, test_target = (torch.tensor(part) for part in parts[2:])
    mean, std = inputs.mean(dim=0), inputs.std(dim=0) + 0.1  # some pixels are always empty
    batches = zip(((inputs - mean) / std).split(64), target.split(64), strict=True)
    return Digits(list(batches), ((test_inputs - mean) / std, test_target))


@contextmanager
def _one_thread() -> Iterator[None]:
    """More threads than one only slow such small layers down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _width() -> int:
    return min(Console().width, 100)


def _title(text: str) -> None:
    _say(f"{text}\n{'=' * len(text)}\n")


def _code(of: Callable[..., object]) -> None:
    """The very code that runs, as it stands in this file, less its notes to the linters."""
    source = inspect.getsource(of)
    _say(indent(re.sub(r"  # (noqa|type:).*", "", source), "    "))


def _say(text: str) -> None:
    """Show a line at once; a terminal that cannot spell the bars of a picture gets question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()
