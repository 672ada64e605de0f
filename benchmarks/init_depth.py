"""How deep a plain network may be: no skip connection, no norm, only its weights chosen well.

    python benchmarks/init_depth.py                      # 1,000-layer MLPs of five activations and the CNN, 3 seeds
    python benchmarks/init_depth.py --depth 10000 --seeds 0 1
    python benchmarks/init_depth.py --act relu --seeds 0 --init default
    python benchmarks/init_depth.py --depth 100 --init all

scikit-learn's digits, 1,437 to train and 360 to test, batch 64.  The networks are ordinary ones of nn.Linear
and nn.Conv2d, trained by torch.optim.RMSprop at the learning rate of ``learning_rate``.  Accuracy is on the test set
after 60 and after 100 steps; nothing is picked by it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from unvanish.torch.centered import CenteredUpdates
from unvanish.torch.init import (
    he_,
    initialize_,
    learning_rate,
    lsuv_,
    mirrored_,
    operating_point_,
    orthogonal_,
    xavier_,
)

WIDTH, CHANNELS = 64, 16
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
INITS: dict[str, Callable[[nn.Module, Tensor, str], object]] = {
    "default": lambda model, x, act: None,
    "xavier": lambda model, x, act: xavier_(model),
    "he": lambda model, x, act: he_(model, activation=act),
    "orthogonal": lambda model, x, act: orthogonal_(model),
    "lsuv": lambda model, x, act: lsuv_(model, x),
    "operating point": lambda model, x, act: operating_point_(model, x),
    "mirrored": lambda model, x, act: mirrored_(model, x),
    "ours": lambda model, x, act: initialize_(model, x),
}


@dataclass(frozen=True)
class Data:
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.x), generator=generator)
            for rows in order.split(size)[: len(self.x) // size]:
                yield self.x[rows], self.y[rows]


@dataclass(frozen=True)
class Run:
    accuracies: tuple[float, ...]
    init_seconds: float
    train_seconds: float


def digits(images: bool) -> Data:
    bunch = load_digits()
    order = torch.randperm(len(bunch.data), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(bunch.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(bunch.target)[order]
    x = x.reshape(-1, 1, 8, 8) if images else x
    return Data(x[:1437], y[:1437], x[1437:], y[1437:])


def mlp(depth: int, act: str) -> nn.Sequential:
    layers = [m for _ in range(depth) for m in (nn.Linear(WIDTH, WIDTH), ACTIVATIONS[act]())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def cnn(depth: int, act: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(CHANNELS if i else 1, CHANNELS, 3, padding=1), ACTIVATIONS[act]()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS * 64, 10))


def train(args: argparse.Namespace, act: str, init: str, seed: int, conv: bool) -> Run:
    torch.manual_seed(seed)
    data = digits(conv)
    model = (cnn if conv else mlp)(args.depth, act)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a failed vital sign is what some rows are about
        INITS[init](model, data.x[:256], act)
    init_seconds = time.process_time() - start
    rate = learning_rate(model, data.x[:2], c=args.c, centered=args.centered)
    inner: Optimizer = torch.optim.RMSprop(model.parameters(), lr=rate)
    optimizer = CenteredUpdates(inner) if args.centered else inner
    batches, accuracies, seconds = data.batches(args.batch, seed), [], 0.0
    for step in range(1, max(args.steps) + 1):
        start = time.process_time()
        x, y = next(batches)
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.process_time() - start
        if step in args.steps:
            with torch.no_grad():
                accuracies.append((model(data.test_x).argmax(1) == data.test_y).double().mean().item())
    return Run(tuple(accuracies), init_seconds, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--act", nargs="+", choices=list(ACTIVATIONS), default=list(ACTIVATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 100], help="after which to measure accuracy")
    parser.add_argument("--batch", type=int, default=64, help="samples per step")
    parser.add_argument("--init", choices=[*INITS, "all"], default="ours")
    parser.add_argument("--net", choices=["mlp", "cnn", "both"], default="both")
    parser.add_argument("--c", type=float, help="the rate is c / (fan_in depth); one over the activation's slope")
    parser.add_argument("--plain-updates", dest="centered", action="store_false", help="without CenteredUpdates")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread; CPU seconds")
    print(f"test accuracy per seed after {' and '.join(map(str, args.steps))} steps, and its median")
    for conv in [False, True] if args.net == "both" and args.depth <= 1000 else [args.net == "cnn"]:
        for act in [a for a in args.act if not conv or a in ("tanh", "relu")]:
            for init in list(INITS) if args.init == "all" else [args.init]:
                if init == "mirrored" and act in ("tanh", "sigmoid"):
                    continue
                runs = [train(args, act, init, seed, conv) for seed in args.seeds]
                print(f"{'CNN' if conv else 'MLP':4} {args.depth:6} {act:8} {init:15} {row(runs)}", flush=True)


def row(runs: list[Run]) -> str:
    """Accuracies and medians, for each number of steps, then the seconds."""
    parts = []
    for accuracies in zip(*(run.accuracies for run in runs), strict=True):
        each = " ".join(f"{accuracy:.3f}" for accuracy in accuracies)
        parts.append(f"{each}: {statistics.median(accuracies):.3f}")
    init = statistics.median(run.init_seconds for run in runs)
    training = statistics.median(run.train_seconds for run in runs)
    return f"{' | '.join(parts)} | init {init:.0f} train {training:.0f}"


if __name__ == "__main__":
    main()
