"""The six ways against vanishing gradients, each alone and together, on one deep network that does not train.

A plain network of 20 sigmoid layers is to read scikit-learn's handwritten digits, with PyTorch's default weights and
plain SGD. Each way is applied to that same network, at the best of three learning rates by training loss. The table
tells what each does for the first layer's gradient and for the accuracy on digits not seen in training, over 3 seeds.

    pip install "unvanish[examples,fast]" && python examples/six_ways.py [--picture six_ways.png]
"""

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

from unvanish.torch.centered import CenteredUpdates
from unvanish.torch.clip import clip_grad_global_norm_, clip_grad_tensor_norm_
from unvanish.torch.gradcheck import gradcheck
from unvanish.torch.init import initialize_, learning_rate, xavier_
from unvanish.torch.normalize import insert_normalization_
from unvanish.torch.regularize import OmegaRegularizer
from unvanish.torch.reset import UnitReset
from unvanish.torch.rmsprop import RMSprop

DEPTH, WIDTH, STEPS, BATCH, SEEDS, HELD_OUT = 20, 64, 300, 64, (0, 1, 2), 360
SGD_RATES, RMSPROP_RATES, RULE_FACTORS = (0.03, 0.1, 0.3), (1e-4, 1e-3, 1e-2), (0.3, 1.0, 3.0)


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels, in an order of the seed's; the first ``HELD_OUT`` are for the test."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(x, dtype=torch.float32)[order] / 8 - 1, torch.tensor(y)[order]


def network() -> nn.Sequential:
    """The patient."""
    layers: list[nn.Module] = [nn.Linear(64, WIDTH), nn.Sigmoid()]
    for _ in range(DEPTH - 1):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


@dataclass
class Training:
    """A training run that a way may change, before it begins."""

    model: nn.Module
    x: Tensor
    y: Tensor
    rate: float
    optimizer: torch.optim.Optimizer
    omega: OmegaRegularizer | None = None
    before_step: Callable[[], object] = lambda: None
    after_step: Callable[[Tensor], object] = lambda _: None


def as_it_is(_: Training) -> None:
    """The network with plain SGD."""


def check_gradients(training: Training) -> None:
    """1: it changes nothing, it tells whether a wrong derivative is the reason."""
    verdict = gradcheck(training.model, F.cross_entropy, (training.x[:8], training.y[:8]))
    assert verdict.ok, verdict


def clip(training: Training) -> None:
    """2: the gradient's norm at most 1."""
    training.before_step = lambda: clip_grad_global_norm_(training.model, 1.0)


def floor(training: Training) -> None:
    """2, its other side: each layer's gradient at least 0.1."""
    training.before_step = lambda: clip_grad_tensor_norm_(training.model, 1.0, floor=0.1)


def reset_saturated(training: Training) -> None:
    """3: units that are saturated or dead start anew."""
    training.after_step = UnitReset(training.model, training.optimizer, every=50, maturity=50).step


def xavier(training: Training) -> None:
    """4, as it is usually done."""
    xavier_(training.model)


def operating_point(training: Training) -> None:
    """4, for this activation and this depth."""
    initialize_(training.model, training.x[:BATCH])


def batch_norm(training: Training) -> None:
    """5: before each activation."""
    insert_normalization_(training.model, "batch", training.x[:BATCH], optimizer=training.optimizer)


def omega(training: Training) -> None:
    """5, its other half: a term in the loss that keeps the gradient's norm from layer to layer."""
    training.omega = OmegaRegularizer(training.model)


def rmsprop(training: Training) -> None:
    """6: each entry divided by the root of its mean square."""
    training.optimizer = RMSprop(training.model.parameters(), lr=training.rate)


def rmsprop_by_depth(training: Training) -> None:
    """6, with a learning rate that knows how deep the network is."""
    rate = training.rate * learning_rate(training.model, training.x[:BATCH])
    training.optimizer = RMSprop(training.model.parameters(), lr=rate)


def rmsprop_centered(training: Training) -> None:
    """6, each update less its mean over a unit's weights: sigmoid has a mean, and without it the rate may be larger."""
    rate = training.rate * learning_rate(training.model, training.x[:BATCH], centered=True)
    training.optimizer = CenteredUpdates(RMSprop(training.model.parameters(), lr=rate))


Way = tuple[str, tuple[Callable[[Training], None], ...], tuple[float, ...]]
WAYS: tuple[Way, ...] = (
    ("as it is", (as_it_is,), SGD_RATES),
    ("1 gradient checking", (check_gradients,), SGD_RATES),
    ("2 clipping, norm <= 1", (clip,), SGD_RATES),
    ("2 clipping, norm >= 0.1", (floor,), SGD_RATES),
    ("3 resetting saturated units", (reset_saturated,), SGD_RATES),
    ("4 initialisation, Xavier", (xavier,), SGD_RATES),
    ("4 initialisation, operating point", (operating_point,), SGD_RATES),
    ("5 batch normalisation", (batch_norm,), SGD_RATES),
    ("5 regularisation, Omega", (omega,), SGD_RATES),
    ("6 RMSprop", (rmsprop,), RMSPROP_RATES),
    ("4 Xavier + 6", (xavier, rmsprop), RMSPROP_RATES),
    ("5 batch normalisation + 6", (rmsprop, batch_norm), RMSPROP_RATES),
    ("4 operating point + 6", (operating_point, rmsprop_by_depth), RULE_FACTORS),
    ("4 operating point + 6 + centred", (operating_point, rmsprop_centered), RULE_FACTORS),
)


@dataclass(frozen=True)
class Result:
    """What came of one run: norms of each layer's weight gradient, and the accuracy on the held-out digits."""

    start: list[float]
    end: list[float]
    loss: float
    accuracy: float


def gradients(training: Training) -> list[float]:
    """The norm of each linear layer's weight gradient on the whole training set; exact however small."""
    training.model.zero_grad()
    F.cross_entropy(training.model(training.x), training.y).backward()
    layers = [module for module in training.model.modules() if isinstance(module, nn.Linear)]
    return [clip_grad_global_norm_(layer.weight, nonfinite="skip").norm for layer in layers]


def train(training: Training, seed: int) -> None:
    """``STEPS`` steps; the order of the samples is the seed's."""
    order = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randint(len(training.x), (BATCH,), generator=order)
        x, y = training.x[chosen], training.y[chosen]
        with training.omega.watch() if training.omega else nullcontext():
            loss = F.cross_entropy(training.model(x), y)
        if training.omega:
            loss = loss + training.omega.penalty(loss)
        training.optimizer.zero_grad()
        loss.backward()
        training.before_step()
        training.optimizer.step()
        training.after_step(x)


def run(changes: tuple[Callable[[Training], None], ...], rate: float, seed: int) -> Result:
    """One way, one learning rate, one seed."""
    torch.manual_seed(seed)
    x, y = digits(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    training = Training(model, x[HELD_OUT:], y[HELD_OUT:], rate, optimizer)
    for change in changes:
        change(training)
    start = gradients(training)
    train(training, seed)
    end = gradients(training)
    with torch.no_grad():
        model.eval()
        loss = F.cross_entropy(model(training.x), training.y).item()
        accuracy = (model(x[:HELD_OUT]).argmax(1) == y[:HELD_OUT]).float().mean().item()
    return Result(start, end, loss if math.isfinite(loss) else math.inf, accuracy)


def best(way: Way) -> list[Result]:
    """All seeds at the learning rate with the least mean training loss: the held-out digits choose nothing."""
    _, changes, rates = way
    tried = [[run(changes, rate, seed) for seed in SEEDS] for rate in rates]
    return min(tried, key=lambda results: mean(result.loss for result in results))


def told(results: list[Result], baseline: list[Result]) -> list[str]:
    """A row of the table: numbers, and a verdict that counts only what is more than the noise between seeds."""
    accuracies = [result.accuracy for result in results]
    usual = [result.accuracy for result in baseline]
    gain, noise = mean(accuracies) - mean(usual), 2 * max(stdev(accuracies), stdev(usual), 1 / HELD_OUT)
    verdict = "no help" if gain <= noise else "trains" if mean(accuracies) > 0.9 else "helps, not enough"
    verdict = "does not train" if results is baseline and mean(usual) < 0.5 else verdict
    first, ratio, later = (
        mean(math.log10(value) if value > 0 else -math.inf for value in values)
        for values in (
            [result.start[0] for result in results],
            [result.start[0] / result.start[-1] for result in results],
            [result.end[0] / result.end[-1] for result in results],
        )
    )
    numbers = [f"1e{first:+.1f}", f"1e{ratio:+.1f}", f"1e{later:+.1f}"]
    return [*numbers, f"{mean(accuracies):.1%} ± {stdev(accuracies):.1%}", verdict]


def alike(found: dict[str, list[Result]]) -> list[list[str]]:
    """Ways with the same gradient at the start: their lines would hide one another."""
    groups: list[list[str]] = []
    for name, results in found.items():
        start = np.log10(results[0].start)
        near = (one for one in groups if np.allclose(np.log10(found[one[0]][0].start), start, atol=0.1))
        group = next(near, None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


def draw(found: dict[str, list[Result]], path: Path) -> None:
    """Gradient by layer at the start, and accuracy at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (lines, bars) = plt.subplots(1, 2, figsize=(14, 6), layout="constrained")
    colours = dict(zip(found, plt.get_cmap("tab20").colors, strict=False))
    for names in alike(found):
        start = found[names[0]][0].start
        lines.semilogy(range(1, len(start) + 1), start, color=colours[names[0]], label="\n".join(names))
    lines.legend(loc="lower right", fontsize="small", labelspacing=1)
    for name, results in found.items():
        accuracies = [result.accuracy for result in results]
        bars.barh(name, mean(accuracies), xerr=stdev(accuracies), color=colours[name])
    lines.set(xlabel="layer", ylabel="norm of the weight gradient", title="At the first step (seed 0)")
    bars.set(xlabel="accuracy on held-out digits", title=f"After {STEPS} steps ({len(SEEDS)} seeds)", xlim=(0, 1))
    bars.invert_yaxis()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Try all ways; print the table, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=Path("six_ways.png"), help="where the picture goes")
    picture = parser.parse_args().picture
    table = Table("way", "|g| of layer 1", "first/last layer", "after training", "accuracy", "verdict", box=None)
    console, found = Console(width=max(110, Console().width)), {}
    for way in WAYS:
        with console.status(way[0]):
            found[way[0]] = best(way)
        table.add_row(way[0], *told(found[way[0]], found["as it is"]))
    console.print(table)
    draw(found, picture)
    console.print(f"picture: {picture}")


if __name__ == "__main__":
    main()
