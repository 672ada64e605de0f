"""How often the diagnosis is right: the whole zoo over seeds, as a confusion matrix.

    python benchmarks/diagnosis.py [--seeds 3] [--workers 2] [--twins] [--json FILE] [NAME ...]

``--twins`` also diagnoses the repaired twin of every sick program: the same without the fault should be healthy.
Writes its tables to standard output; ``benchmarks/RESULTS.md`` holds the last full run.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

HEALTHY = "healthy"


@dataclass(frozen=True)
class Verdict:
    """One diagnosed program."""

    name: str
    seed: int
    twin: bool
    holdout: bool
    truth: str
    accepted: tuple[str, ...]
    found: str
    place_right: bool
    place_known: bool
    confidence: float
    seconds: float

    @property
    def right(self) -> bool:
        """The first cause is the expected one, or one an expert would accept."""
        return self.found in self.accepted


def diagnose_case(job: tuple[str, int, bool]) -> Verdict:
    """Build one program and diagnose it; runs in a worker process."""
    import torch

    from unvanish.flow import diagnose
    from unvanish.torch.zoo import cases

    torch.set_num_threads(1)
    name, seed, twin = job
    case = next(case for case in cases() if case.name == name)
    program = (case.repaired if twin and case.repaired else case.build)(seed)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about the faults built in
        diagnosis = diagnose(
            program.model, program.loss_fn, program.batches, program.optimizer, objective=program.objective
        )
    first = diagnosis.findings[0] if diagnosis.findings else None
    truth = HEALTHY if twin or case.cause is None else case.cause
    place = first is not None and any(re.search(regex, where) for regex in case.where for where in first.where)
    return Verdict(
        name=name,
        seed=seed,
        twin=twin,
        holdout=case.holdout,
        truth=truth,
        accepted=(truth,) if truth == HEALTHY else (truth, *case.accept),
        found=HEALTHY if first is None else first.cause,
        place_right=place,
        place_known=truth != HEALTHY and case.where != (".",),
        confidence=0.0 if first is None else first.confidence,
        seconds=time.perf_counter() - start,
    )


def share(values: list[bool]) -> str:
    """Hits of all as "31/33 (94 %)"."""
    return f"{sum(values)}/{len(values)} ({100 * sum(values) / len(values):.0f} %)" if values else "-"


def scores(verdicts: list[Verdict], title: str) -> list[str]:
    """The row of numbers for one part of the zoo."""
    sick = [v for v in verdicts if v.truth != HEALTHY]
    well = [v for v in verdicts if v.truth == HEALTHY and not v.twin]
    twins = [v for v in verdicts if v.twin]
    cells = [
        title,
        share([v.right for v in sick]),
        share([v.found == v.truth for v in sick]),
        share([v.place_right for v in sick if v.place_known]),
        share([v.found != HEALTHY for v in well]),
        share([v.found != HEALTHY for v in twins]),
    ]
    return ["| " + " | ".join(cells) + " |"]


def confusion(verdicts: list[Verdict]) -> list[str]:
    """Expected cause against first cause found, as a Markdown table."""
    truths = sorted({v.truth for v in verdicts if not v.twin})
    found = sorted({v.found for v in verdicts if not v.twin} | set(truths))
    counts = Counter((v.truth, v.found) for v in verdicts if not v.twin)
    head = ["| expected \\ found | " + " | ".join(found) + " |", "|" + "---|" * (len(found) + 1)]
    rows = ["| " + " | ".join([t, *(str(counts[t, f] or "") for f in found)]) + " |" for t in truths]
    return head + rows


def calibration(verdicts: list[Verdict]) -> list[str]:
    """Stated confidence against how often the first cause was right."""
    lines = ["| stated confidence | findings | right |", "|---|---|---|"]
    for low, high in ((0.0, 0.7), (0.7, 0.85), (0.85, 0.92), (0.92, 1.01)):
        inside = [v for v in verdicts if v.found != HEALTHY and low <= v.confidence < high]
        if inside:
            lines.append(f"| {low:.2f} to {min(high, 1):.2f} | {len(inside)} | {share([v.right for v in inside])} |")
    return lines


def report(verdicts: list[Verdict]) -> str:
    """All tables."""
    lines = ["| part | first cause right | as labelled | place right | alarms on healthy | alarms on repaired twins |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += scores([v for v in verdicts if not v.holdout], "tuning")
    lines += scores([v for v in verdicts if v.holdout], "hold-out")
    by_seed = [scores([v for v in verdicts if v.seed == s], f"seed {s}") for s in sorted({v.seed for v in verdicts})]
    lines += [line for rows in by_seed for line in rows]
    lines += ["", *confusion(verdicts), "", *calibration(verdicts), ""]
    seconds = [v.seconds for v in verdicts]
    lines.append(f"{len(verdicts)} diagnoses, median {statistics.median(seconds):.2f} s, longest {max(seconds):.1f} s.")
    wrong = [v for v in verdicts if not v.right or (v.place_known and not v.place_right)]
    lines += ["", "Wrong:"] + [
        f"- {v.name}{' (twin)' if v.twin else ''}{' (hold-out)' if v.holdout else ''}, seed {v.seed}: "
        f"expected {v.truth}, found {v.found}{'' if v.place_right or not v.place_known else ', place wrong'}"
        for v in wrong
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the zoo and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--twins", action="store_true")
    parser.add_argument("--part", choices=("all", "tuning", "holdout"), default="all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from unvanish.torch.zoo import cases

    chosen = [c for c in cases() if not options.names or any(n in c.name for n in options.names)]
    chosen = [c for c in chosen if options.part == "all" or c.holdout == (options.part == "holdout")]
    jobs = [(c.name, seed, False) for c in chosen for seed in range(options.seeds)]
    jobs += [(c.name, s, True) for c in chosen for s in range(options.seeds) if options.twins and c.repaired]
    with ProcessPoolExecutor(options.workers) as pool:
        verdicts = list(pool.map(diagnose_case, jobs, chunksize=4))
    print(report(verdicts))
    if options.json:
        options.json.write_text(json.dumps([asdict(v) for v in verdicts], indent=1))


if __name__ == "__main__":
    main()
