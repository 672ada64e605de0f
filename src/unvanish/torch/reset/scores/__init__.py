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
        ValueError: an unknown name, what is no score, none at all, or one twice.
    """
    listed = tuple(choice) if isinstance(choice, Sequence) and not isinstance(choice, str) else (choice,)
    strange = [one for one in listed if not isinstance(one, str | AbstractScore)]
    if strange:
        raise ValueError(
            f"UnitReset got a {type(strange[0]).__name__} for a score. It must be a name or an instance, or several "
            f"in a tuple. Choose from {', '.join(_KINDS)}, or give Dead(patience=5)."
        )
    scores = tuple(one if isinstance(one, AbstractScore) else _named(one) for one in listed)
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
