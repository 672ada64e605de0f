"""What a user may set, as plain numbers; anything that is none is refused with the same words as one out of range."""

from __future__ import annotations

import math
from numbers import Real
from typing import get_args

from torch import Tensor

from unvanish.torch.clip.report import NonFinite


def number(value: object) -> float:
    """Also of a NumPy scalar or a tensor of one entry; NaN, which fails every comparison, for what is no number."""
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 and not (value.is_complex() or value.is_meta) else math.nan
    return float(value) if isinstance(value, Real) else math.nan


def count(value: object) -> int:
    """Also of a NumPy integer; -1, which is no count, for what is no whole number."""
    whole = number(value)
    return int(whole) if math.isfinite(whole) and whole == int(whole) else -1


def check_maximum(value: object) -> float:
    """Refuse an upper bound that would turn or delete gradients."""
    maximum = number(value)
    if not maximum > 0:
        raise ValueError(
            f"maximum={value!r} bounds no norm: it would turn gradients around or delete them. Expected a number "
            "above 0. Pass one, or math.inf to measure only."
        )
    return maximum


def check_floor(value: object, maximum: float) -> float:
    """Refuse a lower bound that is no norm, or lies above the upper one."""
    floor = number(value)
    if not 0 <= floor < math.inf:
        raise ValueError(
            f"floor={value!r} is no norm to raise gradients to. Expected a number of 0 or more, and finite. Pass that."
        )
    if floor > maximum:
        raise ValueError(
            f"floor={floor} lies above maximum={maximum}: no norm is between them. Expected floor <= maximum. "
            "Lower floor or raise maximum."
        )
    return floor


def check_share(name: str, value: object) -> float:
    """Refuse what gives units no bound."""
    share = number(value)
    if not 0 < share < math.inf:
        raise ValueError(f"{name}={value!r} gives units no bound to keep. Expected a number above 0. Pass one.")
    return share


def check_range(minimum: object, maximum: object) -> tuple[float, float]:
    """Refuse bounds for entries that would turn or delete gradients; without a minimum it is the other's mirror."""
    high = number(maximum)
    low = -high if minimum is None else number(minimum)
    if not (low <= 0 <= high and low < high):
        shown = repr(-high if minimum is None and not math.isnan(high) else minimum)
        raise ValueError(
            f"[{shown}, {maximum!r}] is no range for gradients. Expected numbers with minimum <= 0 <= maximum, not "
            "both 0: other bounds turn gradients around or delete them. Swap or widen them."
        )
    return low, high


def check_policy(nonfinite: object) -> None:
    """Refuse a word that is no policy."""
    if not isinstance(nonfinite, str) or nonfinite not in get_args(NonFinite):
        known = ", ".join(map(repr, get_args(NonFinite)))
        raise ValueError(f"nonfinite={nonfinite!r} is no policy for NaN and Inf. Expected one of {known}. Pass one.")


def check_state(state: object, keys: set[str], norms: str) -> None:
    """Refuse what no ``state_dict()`` returns: norms are above 0, as those of 0 are not remembered.

    Args:
        state: as the user gave it.
        keys: all it has to have.
        norms: the one of them that has a list; the others have a number of 0 or more.
    """
    right = isinstance(state, dict) and set(state) == keys and isinstance(state[norms], list)
    if right and isinstance(state, dict):
        others = [value for key, value in state.items() if key != norms]
        right = all(isinstance(value, float) for value in (*state[norms], *others))
        right = right and all(0 < norm < math.inf for norm in state[norms])
        right = right and all(0 <= value < math.inf for value in others)
    if not right:
        has = f"has the keys {list(state)[:5]}" if isinstance(state, dict) else f"has the type {type(state).__name__}"
        raise ValueError(
            f"the state {has}. Expected a dictionary with {sorted(keys)}: {norms!r} a list of finite numbers above 0"
            f"{', the others 0 or more' if len(keys) > 1 else ''}. Pass what state_dict() of the same class returned."
        )
