"""What a gradient check costs, and what it finds, beside torch.autograd.gradcheck.

    python benchmarks/gradcheck.py            # about four minutes
    python benchmarks/gradcheck.py --quick    # small networks only

Costs are ratios to one forward and backward pass of the same network and batch, in float32 as it is trained and in
float64 as it is checked; passes and checks alternate in one process on one thread, and the least CPU time counts.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from probe import GPT, cnn, mlp
from torch import Tensor, nn
from torch.autograd import Function

from unvanish.torch.gradcheck import gradcheck

Program = tuple[nn.Module, Tensor, Tensor]


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
    small = {"MLP 12 x 256, tanh, batch 128": (mlp(12, 256), torch.randn(128, 256), torch.randint(10, (128,)))}
    if quick:
        return small
    images, ids = torch.randn(32, 3, 32, 32), torch.randint(256, (4, 128))
    return small | {
        "MLP 100 x 64, tanh, batch 64": (mlp(100, 64), torch.randn(64, 64), torch.randint(10, (64,))),
        "MLP 1000 x 64, tanh, batch 64": (mlp(1000, 64), torch.randn(64, 64), torch.randint(10, (64,))),
        "CNN, 6 x conv-BN-ReLU, 32 x 3 x 32 x 32": (cnn(), images, torch.randint(10, (32,))),
        "GPT-like, 6 layers, d 256, 4 x 128 tokens": (GPT(), ids, torch.randint(256, (512,))),
    }


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def training_pass(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()


def cost(program: Program, rounds: int) -> tuple[float, float, float]:
    """Least seconds of a float32 pass, a float64 pass and a check."""
    model, x, y = program
    double, x_double = copy.deepcopy(model).double(), x.double() if x.is_floating_point() else x
    runs = (
        lambda: training_pass(model, x, y),
        lambda: training_pass(double, x_double, y),
        lambda: gradcheck(model, nn.functional.cross_entropy, (x, y)),
    )
    for run in runs:
        run()
    times = [[seconds(run) for run in runs] for _ in range(rounds)]
    return tuple(map(min, zip(*times, strict=True)))


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
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, one thread, least of {args.rounds}\n")
    print("| net | pass, float32 | pass, float64 | check | of float32 | of float64 |\n|---|---|---|---|---|---|")
    for name, program in programs(args.quick).items():
        single, double, check = cost(program, args.rounds)
        times = " | ".join(f"{t * 1e3:.1f} ms" for t in (single, double, check))
        print(f"| {name} | {times} | {check / single:.1f} | {check / double:.1f} |", flush=True)
    print("\nDerivative of the first of so many sigmoid layers wrong by -3:\n")
    print("| layers | unvanish | torch.autograd.gradcheck | the same, fast_mode |\n|---|---|---|---|")
    for depth in (5, 10) if args.quick else (5, 10, 20, 30, 100):
        print(found(depth), flush=True)


if __name__ == "__main__":
    main()
