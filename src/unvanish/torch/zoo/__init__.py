"""The zoo: small real programs, sick and healthy, whose ground truth was measured by training them.

One module a family; every `Case` at the top level of a module is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from unvanish.torch.zoo._case import Case, Program

__all__ = ["Case", "Program", "cases", "healthy", "sick"]


@cache
def cases() -> tuple[Case, ...]:
    """All cases, in the order of the modules' names and of their definition."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return tuple(value for module in modules for value in vars(module).values() if isinstance(value, Case))


def sick() -> tuple[Case, ...]:
    """The programs that do not train as they should."""
    return tuple(case for case in cases() if case.cause is not None)


def healthy() -> tuple[Case, ...]:
    """The programs that train, though some look ill."""
    return tuple(case for case in cases() if case.cause is None)
