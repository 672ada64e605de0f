"""Why no training was seen: what did happen, in words that are true."""

from __future__ import annotations

import os

from unvanish.torch.run.watch import Watch

_IMPORT = 1.0  # seconds of processor time: what is less did not even import PyTorch
_ONLY = "only the main thread of the main process is watched."
_GRAD = "watched only where one number is derived by parameters that change from call to call, and torch.func's never."


def processes_seconds() -> float:
    """Processor time of the child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def explained(watch: Watch, target: str, others: float) -> str:
    """The message for a script in which no optimizer can be reported on.

    Args:
        watch: what was seen of it.
        target: its name.
        others: processor time of the processes it started.
    """
    passes = watch.backwards + watch.unclear
    steps = watch.roster.unwatched + sum(track.count for track in watch.roster.tracks if not track.by_hand)
    often = "" if steps else f" {passes} times"  # between looks only steps are counted
    called = f"backward() was called{often}" if passes else "backward() was never called"
    stepped = f"optimizers made {steps} steps" if steps else "no optimizer made a step"
    joint = "and" if bool(passes) == bool(steps) else "but"
    there = "in its main thread " if watch.strangers or others > _IMPORT else ""
    return " ".join(
        [
            f"no training was seen in {target}: {there}{called} {joint} {stepped}.",
            *_reasons(watch, others),
            "Expected a script that calls loss.backward() and optimizer.step() of a torch.optim optimizer.",
            "Check that its arguments make it train, or use `unvanish diagnose file.py:factory`.",
        ]
    )


def _reasons(watch: Watch, others: float) -> list[str]:
    """What is known to have happened that is not watched."""
    reasons = []
    if watch.strangers:
        reasons.append(f"Another thread made {watch.strangers} backward passes and steps: {_ONLY}")
    if others > _IMPORT:
        reasons.append(f"Other processes that it started worked for {others:.0f} s: {_ONLY}")
    if watch.inside:
        reasons.append("Steps were made inside of backward(), as by hooks on the gradients: such are not watched.")
    if watch.unclear:
        reasons.append(f"{watch.unclear} of these calls started from something else than a single number: not watched.")
    if watch.derivatives.others:
        reasons.append(f"torch.autograd.grad or torch.func made gradients {watch.derivatives.others} times: {_GRAD}")
    return reasons
