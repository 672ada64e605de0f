"""What a check of UnitReset costs: ratio to one forward and backward pass of the same model on the same batch.

    python benchmarks/reset.py            # about a minute
    python benchmarks/reset.py --rounds 5

Each round times the passes one after the other in one process; the smallest time of all rounds counts.  "check" finds
nothing; "reset" finds one dead unit in a layer and makes it new (two more passes: what its readers read, and the change
of the output); "first" finds out how the model is wired as well.  "every 100" is a check in 100 steps of a plain loop.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unvanish.torch.reset import Dead, LowUtility, Saturated, UnitReset


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def mlp(depth: int, width: int, activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation()]
        nn.init.kaiming_normal_(layers[-2].weight)
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn() -> nn.Sequential:
    def stage(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *stage(3, 32), *stage(32, 32), nn.MaxPool2d(2), *stage(32, 64), *stage(64, 64), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 64, 10),
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "MLP 6 x 512 ReLU, batch 128": (lambda: mlp(6, 512, nn.ReLU), (128, 512), "4.bias"),
    "MLP 50 x 256 tanh, batch 128": (lambda: mlp(50, 256, nn.Tanh), (128, 256), "4.bias"),
    "MLP 1000 x 64 ReLU, batch 64": (lambda: mlp(1000, 64, nn.ReLU), (64, 64), "4.bias"),
    "CNN 4 conv + BN, 32 x 32 x 32": (cnn, (32, 3, 32, 32), "4.bias"),
    "Transformer 4 x 128, 16 x 64": (
        lambda: nn.Sequential(*[Block(128) for _ in range(4)], nn.Linear(128, 64)),
        (16, 64, 128),
        "0.mlp.0.bias",
    ),
}


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(name: str, rounds: int) -> list[float]:
    make, shape, bias = CASES[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    optimizer = torch.optim.Adam(model.parameters())

    def passes() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()

    def reset_for(score: object) -> UnitReset:
        return UnitReset(model, optimizer, score, every=1, maturity=0)

    def reset_one() -> None:
        assert any(event.units for event in finding.check(x).events)

    never = (Dead(patience=10**9), Saturated(patience=10**9))
    quiet, reads, finding = reset_for(never), reset_for(LowUtility(rate=0.0)), reset_for(Dead(patience=1))
    lost = model.get_parameter(bias)
    for warm in (passes, lambda: quiet.check(x), lambda: reads.check(x), lambda: finding.check(x)):
        warm()
    best = [float("inf")] * 5
    for _ in range(rounds):
        lost.data[3] = -1e6 if "tanh" not in name else 1e6
        times = [
            seconds(passes),
            seconds(lambda: quiet.check(x)),
            seconds(lambda: reads.check(x)),
            seconds(reset_one),
            seconds(lambda: reset_for(never).check(x)),
        ]
        best = [min(a, b) for a, b in zip(best, times, strict=True)]
    return [best[0], *(t / best[0] for t in best[1:])]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    print(f"{'':32}{'fwd+bwd ms':>11}{'check':>8}{'utility':>9}{'reset':>8}{'first':>8}{'every 100':>11}")
    for name in CASES:
        base, check, utility, reset, first = measure(name, rounds)
        amortised = 1 + check / 100
        print(f"{name:32}{base * 1e3:11.1f}{check:8.2f}{utility:9.2f}{reset:8.2f}{first:8.2f}{amortised:10.3f}x")


if __name__ == "__main__":
    main()
