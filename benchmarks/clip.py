"""What clipping costs: time as a ratio to reading the gradients once.

    python benchmarks/clip.py            # about two minutes, 2 GB of memory
    python benchmarks/clip.py --quick    # 10 M instead of 50 M entries in the largest tensor, no GPT-2

"Reading once" is NumPy's sum of squares (dot) over the same memory.  Quiet: no gradient is above its bound. Loud: all
are, so that all are written. All variants take turns in one process, and the fastest round of each counts.  One thread,
and its own time: that of others on the machine does not count.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import platform
import runpy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from unvanish.torch.clip import (
    AutoClip,
    clip_grad_global_norm_,
    clip_grad_tensor_norm_,
    clip_grad_unit_norm_,
    clip_grad_value_,
)

Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * width, before, 1, 1), (4 * width,), (4 * width,)]
            before = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2_small() -> Shapes:
    d = 768
    block: Shapes = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(50257, d), (1024, d), *block * 12, (d,), (d,)]


def parameters(shapes: Shapes) -> list[nn.Parameter]:
    torch.manual_seed(0)
    made = []
    for shape in shapes:
        parameter = nn.Parameter(torch.empty(shape).normal_())
        parameter.grad = torch.randn(shape) * 1e-3
        made.append(parameter)
    return made


def timm_agc() -> Callable[..., None]:
    """timm's own, from its file: ``import timm`` needs torchvision, this file only torch."""
    files = importlib.metadata.files("timm") or []
    path = next(file for file in files if file.as_posix() == "timm/utils/agc.py").locate()
    return runpy.run_path(str(path))["adaptive_clip_grad"]


def variants(params: list[nn.Parameter]) -> dict[str, Callable[[], object]]:
    grads: list[Tensor] = [p.grad for p in params]
    flat = [g.numpy().ravel() for g in grads]
    auto, agc = AutoClip(1.0), timm_agc()
    torch_utils = nn.utils
    norm = float(torch_utils.get_total_norm(grads))
    top = max(float(g.abs().max()) for g in grads)

    saved = [g.clone() for g in grads]

    def loud(clip: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            torch._foreach_copy_(grads, saved)
            start = time.thread_time()
            clip()
            spent = time.thread_time() - start
            torch._foreach_copy_(grads, saved)
            return spent

        return run

    return {
        "reading once (NumPy dot)": lambda: [np.dot(x, x) for x in flat],
        "torch sum": lambda: [g.sum() for g in grads],
        "torch get_total_norm": lambda: torch_utils.get_total_norm(grads),
        "quiet: torch clip_grad_norm_": lambda: torch_utils.clip_grad_norm_(params, 2 * norm),
        "quiet: clip_grad_global_norm_": lambda: clip_grad_global_norm_(params, 2 * norm),
        "quiet: clip_grad_tensor_norm_": lambda: clip_grad_tensor_norm_(params, 2 * norm, floor=1e-30),
        "quiet: AutoClip": lambda: auto(params),
        "quiet: torch clip_grad_value_": lambda: torch_utils.clip_grad_value_(params, 2 * top),
        "quiet: clip_grad_value_": lambda: clip_grad_value_(params, 2 * top),
        "quiet: clip_grad_value_ (norms above)": lambda: clip_grad_value_(params, 1.01 * top),
        "quiet: timm adaptive_clip_grad": lambda: agc(params, 1e3),
        "quiet: clip_grad_unit_norm_": lambda: clip_grad_unit_norm_(params, 1e3),
        "loud: torch clip_grad_norm_": loud(lambda: torch_utils.clip_grad_norm_(params, 0.5 * norm)),
        "loud: clip_grad_global_norm_": loud(lambda: clip_grad_global_norm_(params, 0.5 * norm)),
        "loud: torch clip_grad_value_": loud(lambda: torch_utils.clip_grad_value_(params, 0.5 * top)),
        "loud: clip_grad_value_": loud(lambda: clip_grad_value_(params, 0.5 * top)),
        "loud: timm adaptive_clip_grad": loud(lambda: agc(params, 1e-6)),
        "loud: clip_grad_unit_norm_": loud(lambda: clip_grad_unit_norm_(params, 1e-6)),
    }


def measure(params: list[nn.Parameter], rounds: int) -> dict[str, float]:
    best: dict[str, float] = {}
    runs = variants(params)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.thread_time()
            own = run()
            spent = own if isinstance(own, float) else time.thread_time() - start
            best[name] = min(best.get(name, math.inf), spent)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    large = 10 if options.quick else 50
    cases: dict[str, Shapes] = {
        f"1 x {large} M": [(large * 1_000_000,)],
        "1000 x 10 k": [(100, 100)] * 1000,
        "ResNet-50": resnet50(),
    }
    if not options.quick:
        cases["GPT-2 small"] = gpt2_small()
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, 1 thread")
    tables = {name: measure(parameters(shapes), options.rounds) for name, shapes in cases.items()}
    first = next(iter(next(iter(tables.values()))))
    print(f"{'':40s}" + "".join(f"{name:>18s}" for name in tables))
    for row in next(iter(tables.values())):
        cells = "".join(f"{1e3 * t[row]:9.2f} ms {t[row] / t[first]:5.2f}x" for t in tables.values())
        print(f"{row:40s}{cells}")


if __name__ == "__main__":
    main()
