"""What a probe costs: ratio to one plain forward and backward pass, in time and in memory.

    python benchmarks/probe.py            # everything, about five minutes
    python benchmarks/probe.py --quick    # depth 10 and 1,000 only

Compiled loops (extra ``fast``), which a process loads once its probes have cost as much, are loaded, where Numba is
installed; ``--unloaded`` measures what probes cost before that.

Each row alternates plain and probed passes in one process and compares medians; the spread of repeated medians of
the plain pass is the noise.  Memory is the peak resident size of a process of its own per variant, less that of the
process before the pass: *resident* as malloc manages it, where the holes it leaves depend on the addresses the process
got (the plain pass of depth 10,000 peaks at 415 or 577 MB from run to run), and *live*, with every tensor mapped by
itself and given back when it is freed (glibc only), which is what the pass really needs at once.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unvanish.torch.probe import small
from unvanish.torch.probe.naming import names_of
from unvanish.torch.probe.probe import Probe
from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.views.observe import observe

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    name: str
    model: nn.Module
    batch: Batch
    pairs: int


def mlp(depth: int, width: int = 64, *, critical: bool = False) -> nn.Module:
    """As users write it: its gradient vanishes. ``critical``: orthogonal weights, its gradient arrives."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh()]
        if critical:
            nn.init.orthogonal_(layers[-2].weight)
            nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, width: int = 256, layers: int = 6, words: int = 256) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(128, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x))).flatten(0, 1)


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if before != after and before > 3 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def case(name: str) -> Case:
    torch.manual_seed(0)
    if name == "gpt":
        ids = torch.randint(256, (4, 128))
        return Case("GPT-like, 6 layers, d 256, 4 x 128 tokens", GPT(), (ids, torch.randint(256, (4 * 128,))), 9)
    if name == "cnn":
        images = torch.randn(32, 3, 32, 32)
        return Case("CNN, 6 x conv-BN-ReLU, 32 x 3 x 32 x 32", cnn(), (images, torch.randint(10, (32,))), 15)
    depth, critical = int(name.rstrip("cw")), name.endswith("c")
    width, samples = (256, 128) if name.endswith("w") else (64, 64)
    batch = torch.randn(samples, width), torch.randint(10, (samples,))
    title = f"tanh MLP, width {width}, batch {samples}, depth {depth:,}{', orthogonal weights' if critical else ''}"
    pairs = 6000 if width == 64 else 1000
    return Case(title, mlp(depth, width, critical=critical), batch, max(5, min(200, pairs // depth)))


def plain(c: Case) -> None:
    c.model.zero_grad()
    nn.functional.cross_entropy(c.model(c.batch[0]), c.batch[1]).backward()


def probed(c: Case) -> None:
    c.model.zero_grad()
    probe = Probe(names_of(c.model), len(c.batch[0]), (c.batch[0],))
    with probe.watching():
        loss = nn.functional.cross_entropy(c.model(c.batch[0]), c.batch[1])
    probe.attach(loss)
    loss.backward()
    probe.sites()


def observed(c: Case) -> None:
    c.model.zero_grad()
    observe(c.model, None, Objective(nn.functional.cross_entropy, None), c.batch)


CASES = ["10", "100", "1000", "10000", "100c", "1000c", "10w", "100w", "1000w", "gpt", "cnn"]
VARIANTS: dict[str, Callable[[Case], None]] = {"plain": plain, "probe": probed, "observe": observed}


def seconds(run: Callable[[Case], None], c: Case) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    run(c)
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(c: Case, repeats: int) -> str:
    """One row: median plain time, ratios of medians (CPU and wall), and the spread of the plain medians."""
    medians: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for run in VARIANTS.values():
        run(c)
    for _ in range(repeats):
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
        for _ in range(c.pairs):
            for name, run in VARIANTS.items():
                times[name].append(seconds(run, c))
        for name, pairs in times.items():
            medians[name].append((statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)))
    base = [cpu for cpu, _ in medians["plain"]]
    noise = (max(base) - min(base)) / statistics.median(base)
    ratios = [
        statistics.median(one[k] / other[k] for one, other in zip(medians[name], medians["plain"], strict=True))
        for name in ("probe", "observe")
        for k in (0, 1)
    ]
    cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"| {c.name} | {statistics.median(base) * 1e3:.2f} ms | {cells} | {noise:.0%} |"


LIVE = {"MALLOC_MMAP_THRESHOLD_": "8192", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TOP_PAD_": "0"}


def peak(name: str, variant: str, settings: dict[str, str]) -> int:
    """Resident bytes that one pass adds at its peak, in a fresh process; ``settings`` = environment for malloc."""
    command = [sys.executable, __file__, "--memory", name, variant, *(["--unloaded"] if small.PRICE else [])]
    environment = {**os.environ, **settings}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def memory(name: str, settings: dict[str, str]) -> str:
    """Peak of a probed pass over that of a plain one, medians of 3 processes; a dash where a pass is too small."""
    one, other = (statistics.median(peak(name, v, settings) for _ in range(3)) for v in ("plain", "probe"))
    return f"{other / one:.2f} of {one / 2**20:.1f} MB" if one > 2**20 else "-"


def memory_child(name: str, variant: str) -> None:
    """Warm up on a small net, start the kernel's count of the peak anew (Linux only), run one pass."""
    c, small = case(name), case("2")
    for run in VARIANTS.values():
        run(small)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    VARIANTS[variant](c)
    print(resident("VmHWM") - before)


def resident(line: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(row.split()[1] for row in status.splitlines() if row.startswith(line)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=2)
    parser.add_argument("--unloaded", action="store_true", help="without compiled loops, as the first probes are")
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    small.PRICE = sys.maxsize if args.unloaded else 0  # a process that goes on probing has loaded the loops
    if args.memory:
        memory_child(*args.memory)
        return
    names = args.cases or (["10", "1000"] if args.quick else CASES)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, one thread, {args.repeats} repeats")
    print(
        "| net | plain pass (CPU) | probe, CPU | probe, wall | observe, CPU | observe, wall | noise "
        "| memory, resident | memory, live |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        row = measure(case(name), args.repeats)
        print(f"{row} {memory(name, {})} | {memory(name, LIVE)} |", flush=True)


if __name__ == "__main__":
    main()
