"""One call of a torch function: its tensors, the names of its arguments, and the same call on other data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor
from torch.overrides import get_testing_overrides

from unvanish.torch.wiring.kinds import kind_of

# torch's own table knows only one of the two forms of these calls: padded and packed sequences
_SEQUENCE = ("has_biases", "num_layers", "dropout", "train", "bidirectional")
_PADDED = ("input", "hx", "params", *_SEQUENCE, "batch_first")
_PACKED = ("input", "batch_sizes", "hx", "params", *_SEQUENCE)


def replay(func: Any, args: Any, kwargs: Any, places: list[Any]) -> Callable[[Tensor], Any]:
    """The same call with another tensor in the place of the data; it keeps the other arguments, not the data."""
    if len(places) != 1:
        return _not_elementwise
    place = places[0]
    kept = tuple(None if index == place else argument for index, argument in enumerate(args))
    named = {key: value for key, value in kwargs.items() if key != place}

    def call(x: Tensor) -> Any:
        if isinstance(place, int):
            return func(*kept[:place], x, *kept[place + 1 :], **named)
        return func(*kept, **{**named, place: x})

    return call


def _not_elementwise(_: Tensor) -> Any:
    raise AssertionError("an op of several data inputs cannot be applied to one tensor")


@cache
def _signature(func: Any) -> tuple[str, ...]:
    """Argument names of a torch function; builtins have none of their own, torch keeps them in a table."""
    described = get_testing_overrides().get(func, func)
    try:
        return tuple(inspect.signature(described).parameters)
    except (TypeError, ValueError):
        return ()


def roles_of(name: str, func: Any, args: Any) -> dict[Any, str]:
    """Position -> name of the positional arguments of a call."""
    names = _signature(func)
    if kind_of(name, 1, True) == "recurrent" and not name.endswith("cell"):
        names = _PADDED if isinstance(args[3], bool) else _PACKED
    return dict(enumerate(names[: len(args)]))


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclass-like outputs."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
