"""How alive a unit is: one score a file."""

from __future__ import annotations

from collections.abc import Sequence

from unvanish.torch.reset.scores.base import AbstractScore, Judgement, State
from unvanish.torch.reset.scores.dead import Dead
from unvanish.torch.reset.scores.dormant import Dormant
from unvanish.torch.reset.scores.low_utility import LowUtility
from unvanish.torch.reset.scores.saturated import Saturated
from unvanish.torch.reset.scores.self_normalized import SelfNormalized

__all__ = [
    "AbstractScore",
    "Dead",
    "Dormant",
    "Judgement",
    "LowUtility",
    "Saturated",
    "SelfNormalized",
    "State",
    "scores_of",
]

_KINDS: dict[str, type[AbstractScore]] = {
    kind.name: kind for kind in (Dead, Saturated, Dormant, LowUtility, SelfNormalized)
}

ScoreChoice = str | AbstractScore | Sequence[str | AbstractScore]


def scores_of(choice: ScoreChoice) -> tuple[AbstractScore, ...]:
    """Scores by their names, or as they are.

    Raises:
        ValueError: an unknown name, none at all, or one twice.
    """
    listed = (choice,) if isinstance(choice, str | AbstractScore) else tuple(choice)
    scores = tuple(_named(one) if isinstance(one, str) else one for one in listed)
    names = [score.name for score in scores]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"UnitReset got the scores {names}. It needs at least one, and each only once. "
            f"Choose from {', '.join(_KINDS)}."
        )
    return scores


def _named(name: str) -> AbstractScore:
    if name not in _KINDS:
        raise ValueError(
            f'UnitReset does not know a score named "{name}". It knows {", ".join(_KINDS)}. '
            "Give one of these names, or an instance such as Dead(patience=5)."
        )
    return _KINDS[name]()
