"""``unvanish run``: what a step costs that nobody looks at, and how often the verdict is right.

    python benchmarks/run.py              # both, some minutes
    python benchmarks/run.py --cost       # the cost only, about a minute
    python benchmarks/run.py NAME ...     # the verdicts on these programs of the zoo

Cost: blocks of the same training, bare and watched, alternate in one process; in each block the first steps, with the
looks among them, are left out. The least of many rounds each; bare against bare is the noise.
Verdicts: every tuning program of the zoo in a plain script, watched from outside.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from unvanish.torch.run.hooks import watching
from unvanish.torch.run.watch import Watch
from unvanish.torch.zoo import cases

SCRIPT = Path(__file__).parents[1] / "tests" / "programs" / "zoo_program.py"


@dataclass(frozen=True)
class Training:
    """``skipped`` steps of each block are not timed, the next ``timed`` are: none of these is looked at."""

    name: str
    model: nn.Module
    batch: Tensor
    rounds: int
    skipped: int
    timed: int


def trainings() -> list[Training]:
    """From the smallest step there is, where all that is added shows, to real ones."""
    tiny = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    deep = nn.Sequential(*[part for _ in range(50) for part in (nn.Linear(256, 256), nn.ReLU())], nn.Linear(256, 1))
    return [
        Training("tiny MLP", tiny, torch.randn(32, 16), rounds=100, skipped=280, timed=200),
        Training("MLP 50 x 256", deep, torch.randn(128, 256), rounds=8, skipped=24, timed=20),
        Training("GPT-like, 2 x 64", gpt(2, 64), torch.randn(8, 32, 64), rounds=25, skipped=55, timed=40),
        Training("GPT-like, 6 x 128", gpt(6, 128), torch.randn(8, 64, 128), rounds=8, skipped=24, timed=20),
    ]


def gpt(layers: int, width: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.Linear(width, 1))


def block(training: Training, how: Callable[[], AbstractContextManager[None]]) -> float:
    """Microseconds of one step, of this thread alone: what else the machine does is left out."""
    with how():
        optimizer = torch.optim.SGD(training.model.parameters(), lr=1e-4)
        for step in range(training.skipped + training.timed):
            if step == training.skipped:
                start = time.thread_time()
            loss = training.model(training.batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (time.thread_time() - start) / training.timed * 1e6


def watched() -> AbstractContextManager[None]:
    """As ``unvanish run`` does it, with nobody told."""
    return watching(Watch(lambda *_: None, lambda _: None, None))


def cost() -> None:
    """Print what a step costs that is not looked at."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{'':18s}{'bare step':>12s}{'watched':>22s} {'bare again':>22s}")
    ways = (nullcontext, watched, nullcontext)
    for training in trainings():
        took: list[list[float]] = [[], [], []]
        for turn in range(training.rounds):
            for way in sorted(range(3), key=lambda way: (way + turn) % 3):
                took[way].append(block(training, ways[way]))
        bare, *others = map(min, took)
        print(f"{training.name:18s}{bare:9.1f} us", *(f"{t - bare:+11.1f} us {t / bare:.3f}x" for t in others))


def first_finding(name: str) -> dict[str, object] | None:
    """The first finding on the last optimizer that trained (some programs train something else before)."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "unvanish", "run", "--json", str(report), str(SCRIPT), name]
        subprocess.run(command, capture_output=True, check=False, timeout=300)
        told = json.loads(report.read_text())
    last = told[-1] if isinstance(told, list) else told
    return last["findings"][0] if last["findings"] else None  # type: ignore[no-any-return]


def verdicts(wanted: list[str]) -> None:
    """Run all, two at a time, and print the score and what was wrong."""
    chosen = [c for c in cases() if not c.holdout and (not wanted or any(name in c.name for name in wanted))]
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(chosen, pool.map(lambda case: first_finding(case.name), chosen), strict=True))
    right = {c: (f["cause"] if f else None) in (c.cause, *c.accept) for c, f in found.items()}
    placed = {c: any(re.search(r, w) for r in c.where for w in f["where"]) for c, f in found.items() if f}  # type: ignore[attr-defined]
    sick, well = [c for c in chosen if c.cause], [c for c in chosen if not c.cause]
    at = sum(placed.get(c, False) for c in sick)
    print(f"first cause {sum(right[c] for c in sick)}/{len(sick)}, place {at}/{len(sick)}")
    print(f"alarms on healthy {sum(not right[c] for c in well)}/{len(well)}")
    for case in chosen:
        if not right[case] or (case.cause and not placed.get(case)):
            print(f"- {case.name}: expected {case.cause}, found {found[case]}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--cost", action="store_true")
    wanted = parser.parse_args()
    if not wanted.names:
        cost()
    if not wanted.cost:
        verdicts(wanted.names)


if __name__ == "__main__":
    main()
