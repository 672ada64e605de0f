"""``FILE.py:FACTORY`` on the command line to the keyword arguments of ``diagnose``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

KEYWORDS = ("model", "loss_fn", "batches", "optimizer", "objective", "steps", "rules")
_RETURNS = "(model, loss_fn, batches), (model, loss_fn, batches, optimizer) or a dict of keyword arguments of diagnose"


def load(spec: str) -> Callable[[], object]:
    """The function named by ``FILE.py:FACTORY``; the file runs as when it is imported, its folder first on the path.

    Raises:
        ValueError: there is no such file, or no such function in it.
    """
    path, _, name = spec.rpartition(":")
    if not path or not name.isidentifier():
        raise ValueError(
            f"{spec!r} does not name a factory. Expected FILE.py:FACTORY, for example train.py:make. "
            "Write a function without arguments that returns " + _RETURNS + "."
        )
    module = _import(Path(path))
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ValueError(
            f"{path} has no function {name!r}. Expected a function without arguments. "
            f"It defines: {', '.join(_functions(module)) or 'none'}."
        )
    found: Callable[[], object] = factory
    return found


def keywords(made: object) -> dict[str, Any]:
    """What a factory returned, as keyword arguments of ``diagnose``."""
    if isinstance(made, dict):
        if "model" in made and set(made) <= set(KEYWORDS):
            return made
        raise ValueError(
            f"The factory returned a dict with the keys {', '.join(map(str, made)) or '(none)'}. "
            f"Expected 'model' and any of {', '.join(KEYWORDS[1:])}. Rename or remove the others."
        )
    if isinstance(made, tuple) and len(made) in (3, 4):
        return dict(zip(KEYWORDS, made, strict=False))
    shape = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
    raise ValueError(f"The factory returned {shape}. Expected {_RETURNS}. Change its return statement.")


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(
            f"There is no file {str(path)!r} in {Path.cwd()}. Expected the Python file of your factory. "
            "Give its path as seen from here."
        )
    # A file may be called like a module already in use (types.py): that module must stay what it is.
    name = path.stem if path.stem not in sys.modules else f"_factory_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{str(path)!r} is no Python file. Expected a name ending in .py. Rename it.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    return module


def _functions(module: ModuleType) -> list[str]:
    mine = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    return [name for name in mine if callable(getattr(module, name)) and not name.startswith("_")]
