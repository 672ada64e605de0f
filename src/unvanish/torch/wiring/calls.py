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


def replay(func: Any, args: Any, kwargs: Any, places: list[Any]) -> Callable[..., Any]:
    """The same call with other tensors in the places of the data; it keeps the other arguments, not the data."""
    nested = any(not isinstance(args[place] if isinstance(place, int) else kwargs[place], Tensor) for place in places)
    if not places or nested:  # torch.cat and the like: their tensors come as a list
        return _not_elementwise
    kept = tuple(None if index in places else argument for index, argument in enumerate(args))
    named = {key: value for key, value in kwargs.items() if key not in places}

    def call(*data: Tensor) -> Any:
        assert len(data) == len(places), "a call on as many tensors as it had"
        given = dict(zip(places, data, strict=True))
        positional = (given.get(index, argument) for index, argument in enumerate(kept))
        return func(*positional, **named, **{key: x for key, x in given.items() if not isinstance(key, int)})

    return call


def _not_elementwise(*_: Tensor) -> Any:
    raise AssertionError("an op that reads a list of tensors, or none, cannot be applied to others")


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
