"""A term of the loss that is not learnt because the others outweigh it: (how sure, what was seen), or None."""

from __future__ import annotations

import math

from unvanish import reading
from unvanish.types import Flow

_UNLEARNT = 0.9  # of what the best constant answer gives
_LEARNT = 0.6  # of what the best constant answer gives, without the other terms
_SMALL = 0.2  # of the loss at the start: when it falls, it is the others that do
_FELL = 0.5
_CLASSES = ("cross_entropy", "nll")  # of a small batch with many classes the best constant answer knows too much


def learnt_alone(flow: Flow) -> tuple[float, str] | None:
    """It stands with the others, and falls where it is trained on alone."""
    made = {one.lever: one for one in flow.experiments}
    whole, alone = made.get("term"), made.get("term-alone")
    if (
        whole is None
        or alone is None
        or not _UNLEARNT < reading.level(whole) < math.inf
        or reading.level(alone) > _LEARNT
    ):
        return None
    return 0.88, (
        f"after {len(whole.losses)} steps on one batch it stands where the best constant answer has it, and with the other "
        f"terms left out the same network takes {100 * (1 - reading.level(alone)):.0f} % off that"
    )


def falls_without(flow: Flow) -> tuple[float, str] | None:
    """It stands, and the loss falls, in the user's own training, which could not be made again without the others."""
    late = reading.late_terms(flow)
    fallen, share = reading.trains(flow) or 0.0, flow.loss.term_share
    if (
        flow.experiments
        or flow.loss.term in _CLASSES
        or not late
        or min(late) < 1
        or share is None
        or share >= _SMALL
        or fallen < _FELL
    ):
        return None
    return 0.7, (
        f"late in the training it is {late[-1]:.3g} times what the best constant answer gives, although the loss has "
        f"fallen by {100 * fallen:.0f} %"
    )
