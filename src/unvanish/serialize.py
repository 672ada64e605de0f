"""Frozen dataclasses to strictly standard JSON and back, by their type hints.

JSON knows no infinity and no NaN; both mean something here (exactly zero, not a number), so they travel as the
strings "inf", "-inf" and "nan", and ``None`` (not observed) as null.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def to_json(value: object) -> str:
    """The JSON text of a dataclass made of numbers, strings, tuples and other such dataclasses.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Gain:
    ...     log: float | None
    >>> to_json(Gain(-math.inf))
    '{"log": "-inf"}'
    """
    return json.dumps(_plain(value), allow_nan=False)


def from_json(kind: type[T], text: str, *, schema: int | None = None) -> T:
    """The ``kind`` that ``to_json`` wrote; fields the text lacks keep their defaults.

    Raises:
        ValueError: the text is no JSON, is of another schema version, or does not fit the fields of ``kind``.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _misfit(kind.__name__, "JSON text", f"text that is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise _misfit(kind.__name__, "a JSON object", data)
    if schema is not None:
        _check_schema(kind.__name__, data, schema)
    result: T = _read(kind, data, kind.__name__)
    return result


def _plain(value: object) -> object:
    """The value in dicts, lists, strings and finite numbers only."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        return {f.name: _plain(_as_hinted(getattr(value, f.name), hints[f.name])) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(
        f"{type(value).__name__} cannot be written as JSON. Expected numbers, strings, tuples and dataclasses of "
        "these. Convert the value to a plain Python number first."
    )


def _as_hinted(value: object, hint: Any) -> object:
    """A whole number in a field for floats is written as the float it is read as: 0 as 0.0."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and (hint is float or float in get_args(hint)) else value  # type: ignore[arg-type]


def _read(kind: Any, data: Any, path: str) -> Any:
    """The value of type ``kind`` that ``data`` spells; ``path`` says where in the whole it stands."""
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, path)
    origin = get_origin(kind)
    if origin is Literal:
        return _accept(data, data in get_args(kind), "one of " + ", ".join(map(repr, get_args(kind))), path)
    if origin in (Union, types.UnionType):
        return _read_optional(kind, data, path)
    if origin is tuple:
        return _read_tuple(get_args(kind), data, path)
    return _SCALARS[kind](data, path)


def _read_dataclass(kind: Any, data: Any, path: str) -> Any:
    _accept(data, isinstance(data, dict), f"an object with the fields of {kind.__name__}", path)
    hints = _hints(kind)
    for name in data:
        _accept(name, name in hints, f"a field of {kind.__name__} ({', '.join(hints)})", path)
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            _accept(data, field.name in data, f"an object with the field {field.name!r}", path)
    return kind(**{name: _read(hints[name], item, f"{path}.{name}") for name, item in data.items()})


def _read_optional(kind: Any, data: Any, path: str) -> Any:
    """``X | None``, the only union the nouns use."""
    if data is None:
        return None
    (inner,) = (option for option in get_args(kind) if option is not types.NoneType)
    return _read(inner, data, path)


def _read_tuple(items: tuple[Any, ...], data: Any, path: str) -> tuple[Any, ...]:
    _accept(data, isinstance(data, list), "a list", path)
    if items[-1:] == (Ellipsis,):
        return tuple(_read(items[0], item, f"{path}[{i}]") for i, item in enumerate(data))
    _accept(data, len(data) == len(items), f"a list of {len(items)}", path)
    return tuple(_read(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(items, data, strict=True)))


def _read_float(data: Any, path: str) -> float:
    if isinstance(data, str) and data in _WORDS:
        return _WORDS[data]
    _accept(data, _is_number(data), 'a number, "inf", "-inf" or "nan"', path)
    return float(data)


def _read_int(data: Any, path: str) -> int:
    return int(_accept(data, isinstance(data, int) and not isinstance(data, bool), "a whole number", path))


def _read_str(data: Any, path: str) -> str:
    return str(_accept(data, isinstance(data, str), "a string", path))


def _read_bool(data: Any, path: str) -> bool:
    return bool(_accept(data, isinstance(data, bool), "true or false", path))


_SCALARS: Mapping[Any, Callable[[Any, str], Any]] = {
    float: _read_float,
    int: _read_int,
    str: _read_str,
    bool: _read_bool,
}


def _is_number(data: object) -> bool:
    """A JSON number; Python's reader also lets a bare NaN or Infinity through, which standard JSON has not."""
    return isinstance(data, int | float) and not isinstance(data, bool) and abs(data) <= sys.float_info.max


def _accept(data: T, fits: bool, expected: str, path: str) -> T:
    if not fits:
        raise _misfit(path, expected, data)
    return data


def _check_schema(name: str, data: dict[str, Any], schema: int) -> None:
    if data.get("schema") != schema:
        raise ValueError(
            f"The JSON of this {name} has schema version {data.get('schema')!r}. "
            f"This unvanish reads version {schema}. Read it with the release that wrote it, or write it again."
        )


def _misfit(path: str, expected: str, data: object) -> ValueError:
    shown = repr(data)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ValueError(
        f"{path} in the JSON is {shown}. Expected {expected}. "
        "Write the file again with to_json() or --json, and do not edit it by hand."
    )


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
