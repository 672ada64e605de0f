"""One look at all gradients before anything is written: norms, non-finite counts, and what the user wants of those."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch

from unvanish.torch.clip.checks import check_policy
from unvanish.torch.clip.gradients import Gradient, Parameters, gather
from unvanish.torch.clip.norms import count_nonfinite
from unvanish.torch.clip.reading import read
from unvanish.torch.clip.report import ClipReport, NonFinite
from unvanish.torch.clip.shards import Shards, combine

Measure = Callable[[list[Gradient]], None]


def by_kind(gradients: Iterable[Gradient]) -> list[list[Gradient]]:
    """Groups of one device and dtype."""
    groups: dict[object, list[Gradient]] = defaultdict(list)
    for gradient in gradients:
        data = gradient.data
        groups[data.dtype if data.is_cpu else (data.device, data.dtype)].append(gradient)
    return list(groups.values())


def measure_norms(gradients: list[Gradient], bound_of: Callable[[torch.dtype], float] | None = None) -> None:
    """Fill in the norm of each whole gradient and how many of its entries are not finite.

    Also its extremes, if given up to which size entries need no look.
    """
    for group in by_kind(gradients):
        check_numbers(group[0])
        seen = read([gradient.data for gradient in group], bound_of and bound_of(group[0].data.dtype))
        for gradient, norm, smallest, largest in zip(group, *seen, strict=True):
            gradient.norm, gradient.smallest, gradient.largest = norm, smallest, largest
            gradient.nonfinite = 0 if math.isfinite(norm) else count_nonfinite(gradient.data)
    add_up_parts([(gradient, gradient.shards) for gradient in gradients])


def survey(
    parameters: Parameters, nonfinite: NonFinite, measure: Measure = measure_norms
) -> tuple[list[Gradient], ClipReport]:
    """All gradients with their norms, and the report as it stands before clipping.

    Args:
        parameters: as the user gave them.
        nonfinite: what to do about NaN and Inf.
        measure: fills in ``norm`` and ``nonfinite`` of all gradients.

    Raises:
        ValueError: an entry is NaN or Inf and ``nonfinite`` is "raise"; a gradient has no numbers.
    """
    check_policy(nonfinite)
    gradients = gather(parameters)
    measure(gradients)
    bad = sum(gradient.nonfinite for gradient in gradients)
    if bad and nonfinite == "raise":
        raise ValueError(_complaint(gradients))
    if bad and nonfinite == "zero":
        _zero(gradients)
        measure(gradients)
    norm = math.hypot(*(gradient.norm for gradient in gradients))
    zero = sum(gradient.norm == 0 for gradient in gradients)
    skipped = bad > 0 and nonfinite == "skip"
    return gradients, ClipReport(norm, len(gradients), zero=zero, nonfinite=bad, skipped=skipped)


def check_numbers(gradient: Gradient) -> None:
    """Refuse a gradient without numbers."""
    if gradient.data.device.type == "meta":
        raise ValueError(
            f"the gradient of {gradient} is on the meta device and has no numbers. Expected a real device. "
            "Materialise the model before training it."
        )


def add_up_parts(parts: list[tuple[Gradient, Shards | None]]) -> None:
    """Replace norms and counts of parts of distributed gradients by those of the whole, across these cuts."""
    groups: dict[Shards, list[Gradient]] = {}
    for gradient, shards in parts:
        if shards is not None:
            groups.setdefault(shards, []).append(gradient)
    for shards, group in groups.items():
        own = torch.tensor([gradient.norm for gradient in group], dtype=torch.float64)
        norms, counts = combine(own, torch.tensor([gradient.nonfinite for gradient in group]), shards)
        for gradient, norm, count in zip(group, norms.tolist(), counts.tolist(), strict=True):
            gradient.norm, gradient.nonfinite = norm, int(count)


def _zero(gradients: list[Gradient]) -> None:
    for gradient in gradients:
        if gradient.nonfinite:
            torch.nan_to_num_(gradient.data, nan=0.0, posinf=0.0, neginf=0.0)
            gradient.commit()


def _complaint(gradients: list[Gradient]) -> str:
    bad = [gradient for gradient in gradients if gradient.nonfinite]
    worst = bad[0]
    others = f" and {len(bad) - 1} more parameters" if len(bad) > 1 else ""
    return (
        f"the gradient of {worst}{others} has NaN or Inf in {worst.nonfinite} of {worst.parameter.numel()} entries. "
        'Expected finite numbers; nothing was changed. Find where they arise, or pass nonfinite="skip" (write nothing; '
        'right under a GradScaler, which skips the step itself) or nonfinite="zero" (make those entries 0).'
    )
