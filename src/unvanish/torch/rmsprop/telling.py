"""What the user is warned of, each once: settings that are ignored, entries that had no part in a step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from torch.optim import Optimizer

from unvanish.torch.rmsprop import eager, fused
from unvanish.torch.rmsprop.gather import Gathered
from unvanish.torch.rmsprop.settings import Settings

_CALLER = 5  # from it: PyTorch's wrapper, step, _step, once


class Told:
    """What was warned of."""

    __slots__ = ("_what",)

    def __init__(self) -> None:
        self._what: set[str] = set()

    def once(self, what: str, message: str) -> None:
        """Warn, the first time, at the line that called ``step``."""
        if what not in self._what:
            self._what.add(what)
            warnings.warn(message, stacklevel=_CALLER)


def ignored(s: Settings, gathered: Gathered) -> Iterator[tuple[str, str]]:
    """Settings that have no effect on some of these gradients, and why."""
    if s.foreach and gathered.rows:
        yield "rows", "RMSprop: foreach=True has no part in sparse gradients, which go one at a time."
    if not s.fused or not any(slot.p.device.type == "cpu" for slot in gathered.slots):
        return
    if fused.kernel() is None:
        why, mend = "Numba is not installed or is disabled", "pip install 'unvanish[fast]', or leave out fused"
    else:
        why, mend = "its compiled step takes float32 and float64 in one piece of memory only", "leave out fused"
    yield "fused", f"RMSprop: fused=True has no effect on some parameters: {why}. To mend it: {mend}."


def skipped_message(optimizer: Optimizer) -> str:
    """Of the first parameter some entries of whose gradient were no numbers."""
    name, count = next(_skipped(optimizer))
    return (
        f"RMSprop: {count} entries of the gradient of {name} are NaN or Inf. They had no part in the step: their "
        "parameters and state are as before. Expected finite gradients. To find the cause, look at the loss and at "
        "unvanish.diagnose(...); further ones are counted in optimizer.state[p]['skipped'] without a warning."
    )


def _skipped(optimizer: Optimizer) -> Iterator[tuple[str, int]]:
    for i, group in enumerate(optimizer.param_groups):
        names = group.get("param_names", [f"parameter {k} of group {i}" for k in range(len(group["params"]))])
        for name, p in zip(names, group["params"], strict=True):
            if eager.SKIPPED in optimizer.state.get(p, {}):
                yield name, int(optimizer.state[p][eager.SKIPPED])
