"""How often ``unvanish run`` is right: every tuning program of the zoo in a plain script, watched from outside.

python benchmarks/run.py [NAME ...]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from unvanish.torch.zoo import cases

SCRIPT = Path(__file__).parents[1] / "tests" / "programs" / "zoo_program.py"


def first_finding(name: str) -> dict[str, object] | None:
    """The first finding on the last optimizer that trained (some programs train something else before)."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "unvanish", "run", "--json", str(report), str(SCRIPT), name]
        subprocess.run(command, capture_output=True, check=False, timeout=300)
        told = json.loads(report.read_text())
    last = told[-1] if isinstance(told, list) else told
    return last["findings"][0] if last["findings"] else None  # type: ignore[no-any-return]


def main() -> None:
    """Run all, two at a time, and print the score and what was wrong."""
    wanted = sys.argv[1:]
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


if __name__ == "__main__":
    main()
