"""Frozen dataclasses made quickly: a probe makes thousands, and their own constructor sets each field the slow way."""

from __future__ import annotations

from dataclasses import MISSING, field, fields, make_dataclass
from typing import Any, TypeVar, cast

T = TypeVar("T")


def maker(kind: type[T]) -> type[T]:
    """A constructor of ``kind``, a frozen dataclass with slots, several times as fast as its own.

    A frozen dataclass sets its fields through ``object.__setattr__``.  The twin made here has the same slots and is
    not frozen; when its fields are set it becomes an instance of ``kind``, frozen, in nothing different from others.
    """
    columns: list[tuple[str, Any, Any]] = [
        (one.name, one.type, field() if one.default is MISSING else field(default=one.default))
        for one in fields(cast(Any, kind))
    ]

    def become(self: Any) -> None:
        self.__class__ = kind

    names = {"__post_init__": become}
    return cast(type[T], make_dataclass(kind.__name__, columns, slots=True, eq=False, repr=False, namespace=names))
