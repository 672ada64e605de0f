"""What a gradient check costs, and what it finds, beside torch.autograd.gradcheck.

    python benchmarks/gradcheck.py            # about six minutes
    python benchmarks/gradcheck.py --quick    # small networks only

Costs are ratios to one forward and backward pass of the same network and batch, in float32 as it is trained and in
float64 as it is checked, in one process on one thread.  A check is a hundred times longer than a pass, so the least
time of many short passes would meet quieter moments of a shared machine than any check: as many passes as last as long
as a check alternate with checks, the ratio is taken of neighbours, and the median of these ratios is shown.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from probe import GPT, cnn, mlp
from torch import Tensor, nn
from torch.autograd import Function

from unvanish.torch.gradcheck import gradcheck

Program = tuple[nn.Module, Tensor, Tensor, Callable[..., Tensor]]


class Wrong(Function):
    """A sigmoid whose derivative is wrong by the factor -3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.sigmoid()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return -3 * grad * y * (1 - y)


class Sigmoids(nn.Module):
    """Linear layers and sigmoids; the first sigmoid is ``wrong`` or not."""

    def __init__(self, depth: int, width: int, wrong: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = Wrong.apply(layer(x)) if k == 0 and self.wrong else layer(x).sigmoid()
        return x


def programs(quick: bool) -> dict[str, Program]:
    torch.manual_seed(0)
    entropy = nn.functional.cross_entropy
    small: dict[str, Program] = {
        "MLP 12 x 256, tanh, batch 128": (mlp(12, 256), torch.randn(128, 256), torch.randint(10, (128,)), entropy)
    }
    for wrong, depth in itertools.product((False, True), (5, 10) if quick else (5, 10, 20, 30, 100)):
        name = f"{depth} x 64, sigmoid, batch 64{', first derivative x -3' if wrong else ''}"
        small[name] = Sigmoids(depth, 64, wrong), torch.randn(64, 64), torch.rand(64, 64), nn.functional.mse_loss
    if quick:
        return small
    images, ids = torch.randn(32, 3, 32, 32), torch.randint(256, (4, 128))
    return small | {
        "MLP 100 x 64, tanh, batch 64": (mlp(100, 64), torch.randn(64, 64), torch.randint(10, (64,)), entropy),
        "MLP 1000 x 64, tanh, batch 64": (mlp(1000, 64), torch.randn(64, 64), torch.randint(10, (64,)), entropy),
        "CNN, 6 x conv-BN-ReLU, 32 x 3 x 32 x 32": (cnn(), images, torch.randint(10, (32,)), entropy),
        "GPT-like, 6 layers, d 256, 4 x 128 tokens": (GPT(), ids, torch.randint(256, (512,)), entropy),
    }


def seconds(run: Callable[[], Any], count: int = 1) -> float:
    """Of one run, in a row of so many."""
    start = time.process_time()
    for _ in range(count):
        run()
    return (time.process_time() - start) / count


def training_pass(model: nn.Module, x: Tensor, y: Tensor, loss: Callable[..., Tensor]) -> None:
    model.zero_grad()
    loss(model(x), y).backward()


def doubled(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def cost(program: Program, rounds: int) -> tuple[list[float], list[float]]:
    """Median seconds of a float32 pass, a float64 pass and a check; median ratios of the check to both passes."""
    model, x, y, loss = program
    other = copy.deepcopy(model).double()
    runs = (
        lambda: training_pass(model, x, y, loss),
        lambda: training_pass(other, doubled(x), doubled(y), loss),
        lambda: gradcheck(model, loss, (x, y)),
    )
    for run in runs:
        run()
    once = [seconds(run) for run in runs]
    counts = [max(1, round(once[2] / one)) for one in once]
    times = [[seconds(run, count) for run, count in zip(runs, counts, strict=True)] for _ in range(rounds)]
    ratios = [[check / one for one in passes] for *passes, check in times]
    return _medians(times), _medians(ratios)


def _medians(rows: list[list[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def peer(model: nn.Module, x: Tensor, fast: bool) -> bool:
    """torch.autograd.gradcheck with its defaults, by input and all parameters."""
    model, names = model.double(), [name for name, _ in model.named_parameters()]

    def run(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values[1:], strict=True)), (values[0],)).mean()

    inputs = x.double().requires_grad_(), *model.parameters()
    return torch.autograd.gradcheck(run, inputs, fast_mode=fast, raise_exception=False)


def found(depth: int) -> str:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    wrong, right = Sigmoids(depth, 8, True), Sigmoids(depth, 8, False)
    ours = [gradcheck(net, lambda y, _: y.mean(), (x, torch.zeros(1))).ok for net in (wrong, right)]
    theirs = [peer(net, x, fast) for fast in (False, True) for net in (wrong, right)]
    cells = [
        {(False, True): "found", (True, True): "missed"}.get(pair, "false alarm") for pair in _pairs(ours + theirs)
    ]
    return f"| {depth} | {' | '.join(cells)} |"


def _pairs(answers: list[bool]) -> list[tuple[bool, bool]]:
    return list(zip(answers[::2], answers[1::2], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, one thread, medians of {args.rounds}\n")
    print("| net | pass, float32 | pass, float64 | check | of float32 | of float64 |\n|---|---|---|---|---|---|")
    for name, program in programs(args.quick).items():
        measured, ratios = cost(program, args.rounds)
        times = " | ".join(f"{t * 1e3:.2f} ms" for t in measured)
        print(f"| {name} | {times} | {' | '.join(f'{ratio:.1f}' for ratio in ratios)} |", flush=True)
    print("\nDerivative of the first of so many sigmoid layers wrong by -3:\n")
    print("| layers | unvanish | torch.autograd.gradcheck | the same, fast_mode |\n|---|---|---|---|")
    for depth in (5, 10) if args.quick else (5, 10, 20, 30, 100):
        print(found(depth), flush=True)


if __name__ == "__main__":
    main()
