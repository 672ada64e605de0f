"""Run somebody's script as ``python script.py args`` would."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

_OURS = str(Path(__file__).resolve().parents[2]) + os.sep


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: code, its ``__main__`` module, and what the interpreter would put in argv[0] and path[0]."""

    code: CodeType
    main: ModuleType
    argv0: str
    path0: str


def load(target: str, *, module: bool) -> Program:
    """Find and compile a script, a folder with ``__main__.py``, or (with ``module``) a module.

    Raises:
        ValueError: there is no such program.
        SyntaxError: it is no Python.
    """
    return _load_module(target) if module else _load_file(target)


def _load_file(target: str) -> Program:
    path = Path(target)
    if path.is_dir() or zipfile.is_zipfile(path):
        return _load_container(target)
    if not path.is_file():
        raise ValueError(
            f"There is no file {target!r} in {Path.cwd()}. Expected your training script. "
            "Give its path as seen from here, or use -m for a module."
        )
    full = str(path.absolute())
    code = compile(path.read_bytes(), full, "exec", dont_inherit=True)
    main = _main_module(full, importlib.machinery.SourceFileLoader("__main__", full))
    return Program(code, main, target, str(path.resolve().parent))


def _load_container(target: str) -> Program:
    """A folder or a zip file with a ``__main__.py``."""
    full = str(Path(target).absolute())
    spec = importlib.machinery.PathFinder.find_spec("__main__", [full])
    code = _code(spec)
    if spec is None or code is None:
        raise ValueError(
            f"There is no __main__.py in {target!r}. Expected a training script, or a folder or zip file that "
            "Python can run. Give the path of the script itself."
        )
    main = _main_module(spec.origin or "", spec.loader)
    main.__spec__, main.__package__ = spec, ""
    return Program(code, main, target, full)


def _code(spec: importlib.machinery.ModuleSpec | None) -> CodeType | None:
    """What a module runs; None of one that is not there, or not of Python."""
    code: CodeType | None = getattr(spec.loader, "get_code", lambda _: None)(spec.name) if spec is not None else None
    return code


def _load_module(name: str) -> Program:
    sys.path.insert(0, str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError:
        spec = None
    finally:
        sys.path.pop(0)
    code = _code(spec)
    if spec is None or code is None:
        raise ValueError(
            f"There is no module {name!r} to run. Expected a module or package that `python -m {name}` runs. "
            "Run it from the folder that holds the package, or install it."
        )
    main = _main_module(spec.origin or "", spec.loader)
    main.__spec__, main.__package__ = spec, spec.parent
    return Program(code, main, spec.origin or "", str(Path.cwd()))


def _main_module(file: str, loader: Any) -> ModuleType:
    main = ModuleType("__main__")
    main.__file__, main.__loader__, main.__package__, main.__spec__ = file, loader, None, None
    vars(main).update(__builtins__=sys.modules["builtins"], __cached__=None)
    return main


def execute(program: Program, args: list[str]) -> None:
    """Run it; whatever it raises comes out.

    It stays ``__main__``, with its arguments, to the end of the process: for what it leaves to ``atexit`` and threads.
    """
    sys.argv = [program.argv0, *args]
    if not sys.flags.safe_path:
        sys.path[0] = program.path0
    sys.modules["__main__"] = program.main
    exec(program.code, vars(program.main))


def exit_code(error: SystemExit) -> int:
    """What ``sys.exit`` would make of its argument; a message is printed, as Python does."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    sys.stderr.write(f"{error.code}\n")
    return 1


def show_traceback(error: BaseException) -> None:
    """The traceback Python would print, without our frames, through the script's own excepthook if it set one."""
    _clean(error, set())
    sys.excepthook(type(error), error, error.__traceback__)


def _clean(error: BaseException | None, seen: set[int]) -> None:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = _without_us(error.__traceback__)
    _clean(error.__cause__, seen)
    _clean(error.__context__, seen)


def _without_us(trace: TracebackType | None) -> TracebackType | None:
    kept = []
    while trace is not None:
        kept.append(trace)
        trace = trace.tb_next
    clean: TracebackType | None = None
    for part in reversed(kept):
        if not part.tb_frame.f_code.co_filename.startswith(_OURS):
            clean = TracebackType(clean, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return clean
