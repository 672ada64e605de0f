"""The command line: a thin skin. It exits with 0 for healthy, 1 for findings, 2 for an error."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unvanish import __version__, factory
from unvanish.diagnosis import Diagnosis
from unvanish.report import explain as pages
from unvanish.report.text import render
from unvanish.units import rules

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find which layer of a deep network loses the gradient, and why, and what cures it.",
)
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps to take at most.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the diagnosis as JSON, too.")]


def main() -> None:
    """The console script."""
    app(prog_name="unvanish")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unvanish {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version  # its callback has done it


# Everything after SCRIPT belongs to the script, options and "--" too: nothing of it is read here.
@app.command(context_settings={"allow_interspersed_args": False})
def run(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="Your training script, or a module with -m.")],
    args: Annotated[list[str] | None, typer.Argument(metavar="ARGS", help="Passed to the script.")] = None,
    steps: Steps = None,
    json: Json = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as in python -m.")] = False,
) -> None:
    """Run your own, unchanged training script and diagnose it while it trains."""
    with _errors():
        _check_folder(json)
        from unvanish.torch import script as torch_script

        code = torch_script.run(script, args or [], module=module, steps=steps, json_path=json)
    raise typer.Exit(code)


@app.command()
def diagnose(
    target: Annotated[str, typer.Argument(metavar="FILE.py:FACTORY", help="A function without arguments.")],
    json: Json = None,
    steps: Steps = None,
) -> None:
    """Diagnose what FACTORY returns: (model, loss_fn, batches[, optimizer]), or a dict of arguments of diagnose."""
    with _errors():
        _check_folder(json)
        from unvanish.flow import diagnose as find_causes

        arguments = factory.keywords(factory.load(target)())
        diagnosis = find_causes(**(arguments if steps is None else arguments | {"steps": steps}))
        _show_diagnosis(diagnosis, json)
    raise typer.Exit(0 if diagnosis.healthy else 1)


@app.command()
def explain(cause: Annotated[str | None, typer.Argument(metavar="CAUSE", help="An id from the list.")] = None) -> None:
    """Say what a cause means, how it is recognised and what cures it; without CAUSE, list them all."""
    with _errors():
        _show(pages.index(rules()) if cause is None else _page(cause))


@app.command()
def demo() -> None:
    """A deep network on handwritten digits that does not train: diagnosed, then cured."""
    with _errors():
        from unvanish.torch.demo import main as play

        code = play()
    raise typer.Exit(code)


def _page(cause: str) -> str:
    found = [pages.page(rule) for rule in rules() if rule.cause == cause]
    if found:
        return "\n\n".join(found)
    raise ValueError(
        f"There is no cause {cause!r}. Expected one of {', '.join(rule.cause for rule in rules())}. "
        "See them all with: unvanish explain"
    )


def _show_diagnosis(diagnosis: Diagnosis, json: Path | None) -> None:
    terminal = Console()
    color = terminal.is_terminal and not terminal.no_color
    _show(render(diagnosis, width=min(terminal.width, 120), color=color))
    if json is not None:
        json.write_text(diagnosis.to_json() + "\n", encoding="utf-8")


def _show(text: str) -> None:
    """A terminal that cannot spell the bars of a picture gets question marks, not a traceback."""
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "replace").decode(encoding))


def _check_folder(json: Path | None) -> None:
    """Before hours of training, not after."""
    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise ValueError(
            f"--json {json} cannot be written. Expected a file in a folder that exists. "
            "Create the folder, or name a file elsewhere."
        )


@contextmanager
def _errors() -> Iterator[None]:
    """What we refuse is one message; what the user's own code raises is shown whole. Both exit with 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "torch":
            _show_traceback(error)
        else:
            _complain(
                "PyTorch is not installed here. Expected the framework your network is written in. "
                'Install it with: pip install "unvanish[torch]"'
            )
        raise typer.Exit(2) from None
    except Exception as error:
        if not _is_refusal(error):
            _show_traceback(error)
            raise typer.Exit(2) from None
        if error.__cause__ is not None:
            _show_traceback(error.__cause__)
        _complain(str(error))
        raise typer.Exit(2) from None


def _is_refusal(error: Exception) -> bool:
    """A ValueError raised by a line of this package; a user's loss_fn may raise one just as well."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, ValueError) and str(frames[-1]).partition(".")[0] == "unvanish"


def _show_traceback(error: BaseException) -> None:
    traceback.print_exception(error, file=sys.stderr)


def _complain(message: str) -> None:
    typer.echo(f"unvanish: {message}", err=True)
