"""Train every program of the zoo plainly and print what comes of it: ``python -m unvanish.torch.zoo._verify [names]``.

No code of the diagnosis is used.  For each program, over seeds: mean loss over its batches before and after, the
constant predictor's loss, accuracy (or squared correlation for numbers), the share of the way from the constant
predictor to zero loss, and the same for the twin without the fault.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unvanish.torch.zoo import Case, Program, cases

STEPS = 60
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Outcome:
    """One plain training: losses before and after, the constant predictor's loss, the final score, seconds."""

    first: float
    last: float
    floor: float | None
    score: float | None
    seconds: float

    @property
    def progress(self) -> float:
        """1 - last loss / the better of first loss and constant prediction; negative where it got worse."""
        if not math.isfinite(self.last) or not math.isfinite(self.first):
            return -math.inf
        base = self.first if self.floor is None else min(self.first, self.floor)
        return 1 - self.last / base if base > 0 else math.nan


def mean_loss(program: Program) -> float:
    """Mean loss over the program's batches, no step taken."""
    return sum(float(program.loss(batch).detach()) for batch in program.batches) / len(program.batches)


def pairs(program: Program) -> tuple[Tensor, Tensor] | None:
    """All outputs and targets where the batches are (input, target)."""
    if program.objective is not None:
        return None
    with torch.no_grad():
        made = [(program.model(x), y) for x, y in program.batches]
    if not all(isinstance(out, Tensor) for out, _ in made):
        return None
    return torch.cat([out for out, _ in made]), torch.cat([y for _, y in made])


def constant_loss(target: Tensor, squared: bool = False) -> float:
    """The best loss of a constant prediction: entropy for classes and 0/1 targets, variance for numbers."""
    if target.is_floating_point():
        p = float(target.float().mean())
        if set(target.unique().tolist()) <= {0.0, 1.0} and not squared:
            return -p * math.log(p) - (1 - p) * math.log(1 - p)
        return float(target.float().var())
    share = target.flatten().bincount().float() / target.numel()
    return float(-(share * share.clamp_min(1e-9).log()).sum())


def score(output: Tensor, target: Tensor) -> float:
    """Accuracy for classes, squared correlation for numbers (0 for a constant output)."""
    if not target.is_floating_point():
        return float((output.argmax(1) == target).float().mean())
    both = torch.stack([output.flatten().float(), target.flatten().float()])
    return float(torch.corrcoef(both)[0, 1].nan_to_num() ** 2)


def train(program: Program, steps: int = STEPS) -> Outcome:
    """The user's loop: cycle through the batches for ``steps`` optimizer steps."""
    start, first = time.perf_counter(), mean_loss(program)
    if program.optimizer is None:
        raise ValueError("nothing to train with")
    for step in range(steps):
        program.optimizer.zero_grad()
        program.loss(program.batches[step % len(program.batches)]).backward()
        program.optimizer.step()
    seconds, last, made = time.perf_counter() - start, mean_loss(program), pairs(program)
    squared = isinstance(program.loss_fn, torch.nn.MSELoss)
    floor, final = (None, None) if made is None else (constant_loss(made[1], squared), score(*made))
    return Outcome(first, last, floor, final, seconds)


def outcomes(build: Callable[[int], Program]) -> list[Outcome]:
    """One training per seed, each under its own global seed."""
    results = []
    for seed in SEEDS:
        program = build(seed)
        torch.manual_seed(seed)
        results.append(train(program))
    return results


def cells(results: list[Outcome]) -> str:
    """Losses of the first seed; progress and score over the seeds."""
    one = results[0]
    floor = "     -" if one.floor is None else f"{one.floor:6.3g}"
    scores = "/".join("-" if r.score is None else f"{r.score:.2f}" for r in results)
    progress = "/".join(f"{r.progress:.2f}" for r in results)
    return f"{one.first:9.3g} -> {one.last:9.3g} (const {floor}) progress {progress:18} score {scores:14}"


def report(case: Case) -> str:
    """One or two lines: the program, and its repaired twin."""
    label = f"{case.name + (' *' if case.holdout else ''):30} {case.cause or 'healthy':18}"
    results = outcomes(case.build)
    line = f"{label} {cells(results)} {max(r.seconds for r in results):.1f}s"
    if case.repaired is None:
        return line
    return f"{line}\n{'':38}repaired    {cells(outcomes(case.repaired))}"


def main(names: list[str]) -> None:
    """Print a report for the named cases or causes (all without names)."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for case in cases():
        if not names or case.name in names or case.cause in names or (case.cause is None and "healthy" in names):
            print(report(case), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
