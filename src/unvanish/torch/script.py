"""``unvanish run``: the user's own, unchanged script is run, watched and diagnosed."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from torch import Tensor

from unvanish.diagnosis import Diagnosis
from unvanish.flow import judge
from unvanish.report.live import Live
from unvanish.report.text import render
from unvanish.torch.run.assemble import assemble
from unvanish.torch.run.hooks import watching
from unvanish.torch.run.joined import joined
from unvanish.torch.run.program import Program, execute, exit_code, load, show_traceback
from unvanish.torch.run.stillborn import NOTE, broken_losses, stillborn, variables
from unvanish.torch.run.streams import flush_stdout, own_stderr
from unvanish.torch.run.threads import threads_as_set
from unvanish.torch.run.track import Look, Track
from unvanish.torch.run.trial import examined, tried
from unvanish.torch.run.untrained import explained, processes_seconds
from unvanish.torch.run.watch import Enough, Watch
from unvanish.types import Flow

_PATIENCE = 60.0  # seconds that experiments after the script may take
_FAR_LONGER = 3  # times as many steps
_RUNS = 360  # steps of all experiments together
_TERMS = 640  # more of them, where one term of several is followed
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
_PLAYED = "its loss is played against another network's, and need not fall where both get better"


def run(
    target: str, args: list[str], *, module: bool = False, steps: int | None = None, json_path: Path | None = None
) -> int:
    """Run a training script and report on every optimizer that trained in it.

    Args:
        target: path of the script, or with ``module`` the name of a module.
        args: the script's own arguments.
        module: run ``target`` as ``python -m`` would.
        steps: stop the script after this many steps of its first optimizer.
        json_path: where to write the diagnosis as JSON (a list where several optimizers trained).

    Returns:
        The exit code: the script's own if that is not 0, else 1 for findings, 0 for none, 2 where nothing trained.

    Raises:
        ValueError: there is no such script or module.
    """
    json_path = None if json_path is None else json_path.absolute()
    try:
        program = load(target, module=module)
    except SyntaxError as error:  # in the script
        show_traceback(error)
        return 1
    with own_stderr() as stream:
        return _watched(program, args, Live(stream), steps, json_path)


def _watched(program: Program, args: list[str], live: Live, steps: int | None, json_path: Path | None) -> int:
    """Run the program, report, and return the exit code."""
    watch = Watch(lambda track, look: _show(live, watch, track, look), live.say, steps)
    process, began = os.getpid(), processes_seconds()
    left: list[Tensor] = []
    code = _execute(program, args, watch, live, left)
    if os.getpid() != process:  # a child the script forked came all the way back
        raise SystemExit(code)
    flush_stdout()
    if watch.broken is not None:
        live.say("stopped watching because of an error of its own, please report it; the script was not disturbed")
        live.stream.write(watch.broken)
    if not _reported(watch):
        why = explained(watch, program.argv0, processes_seconds() - began)
        verdict = _report_no_step(watch, live, left, json_path, why)
        return code or verdict
    verdict = _report(watch, live, json_path, quiet=bool(code))
    return code or verdict


def _execute(program: Program, args: list[str], watch: Watch, live: Live, left: list[Tensor]) -> int:
    """Run the script to its end, whatever that is; its exit code. Losses that are not finite are added to ``left``."""
    with watching(watch), threads_as_set():
        try:
            try:
                execute(program, args)
            except BaseException as error:
                left += broken_losses(variables(error.__traceback__))
                raise
            finally:
                live.clear()
                left += broken_losses(vars(program.main).values())
        except Enough:
            live.say("the wanted number of steps is done, the script was stopped")
        except SystemExit as leave:
            return exit_code(leave)
        except KeyboardInterrupt:
            live.say("interrupted")
            return _INTERRUPTED
        except BaseException as error:
            flush_stdout()
            show_traceback(error)
            return 1
    return 0


def _show(live: Live, watch: Watch, track: Track, look: Look) -> None:
    who = f"{label(track, watch)}: " if len(_trained(watch)) > 1 else ""
    own = tuple(p for p in look.seen.parameters if p.name in track.names)
    live.step(who, look.step, track.losses.values[look.step], own)


def label(track: Track, watch: Watch) -> str:
    """Which optimizer this is, in the user's words: "Adam of discriminator"."""
    roots = dict.fromkeys(watch.roots.root_of(name) or name for name in track.names)
    return f"{track.name} of {', '.join(list(roots)[:3])}" if roots else track.name


def _trained(watch: Watch) -> list[Track]:
    return [track for track in watch.roster.tracks if track.count]


def _reported(watch: Watch) -> list[Track]:
    """The optimizers to report on; a training repeated fold after fold is reported once."""
    tracks = [track for track in _trained(watch) if track.seen and not (track.by_hand and track.stood())]
    firsts = [track for i, track in enumerate(tracks) if not any(track.repeats(other) for other in tracks[:i])]
    return [_main_of([first, *(track for track in tracks if track.repeats(first))]) for first in firsts]


def _main_of(repeated: list[Track]) -> Track:
    """The first, unless it was a trial beside the training that followed: of learning rates, of a few batches."""
    first, longest = repeated[0], max(repeated, key=lambda track: track.count)
    return longest if longest.count > _FAR_LONGER * first.count else first


def _report(watch: Watch, live: Live, json_path: Path | None, *, quiet: bool) -> int:
    reported = _reported(watch)
    tracks = joined(reported)
    found = [_diagnose(track, tracks, watch, 0 if quiet else _PATIENCE) for track in tracks]
    for track, diagnosis in zip(tracks, found, strict=True):
        _print(live.stream, diagnosis, f"{label(track, watch)}, {track.count} steps" if len(tracks) > 1 else "")
    _say_what_is_left(watch, live, len(reported))
    if not _written(found, json_path, live):
        return 2
    return 0 if quiet or all(diagnosis.healthy for diagnosis in found) else 1


def _report_no_step(watch: Watch, live: Live, left: list[Tensor], json_path: Path | None, why: str) -> int:
    """Nothing trained: because of a NaN, or else for the reason given."""
    flow = stillborn(watch, left) if watch.broken is None else None
    if flow is None:
        if watch.broken is None:
            live.say(why)
        return 2
    diagnosis = judge(flow)
    diagnosis = replace(diagnosis, notes=(*diagnosis.notes, NOTE))
    _print(live.stream, diagnosis, "")
    return 1 if _written([diagnosis], json_path, live) else 2


def _written(found: list[Diagnosis], json_path: Path | None, live: Live) -> bool:
    """Write them as JSON, a list where there are several; False if that is wanted and cannot be done."""
    if json_path is None:
        return True
    texts = [diagnosis.to_json() for diagnosis in found]
    try:
        json_path.write_text((texts[0] if len(texts) == 1 else f"[{','.join(texts)}]") + "\n", encoding="utf-8")
    except OSError as error:
        live.say(
            f"--json {json_path} could not be written: {error}. Expected a file that can be written to until the "
            "script has ended. Name one elsewhere; the report above is complete."
        )
        return False
    return True


def _say_what_is_left(watch: Watch, live: Live, told: int) -> None:
    """Of every optimizer that made a step and is not among those told of: why."""
    blind = [track for track in _trained(watch) if not track.seen]
    more = watch.roster.unwatched + len(_trained(watch)) - len(blind) - told
    if more:
        live.say(f"{more} more optimizers, of trainings that repeat these or came too late, are not reported")
    for track in blind:
        live.say(
            f"{track.name} is not reported: it made {track.count} steps, and no backward pass was seen that gave them "
            "a gradient"
        )


def _diagnose(track: Track, tracks: list[Track], watch: Watch, seconds: float) -> Diagnosis:
    """The verdict on one optimizer; ``seconds`` may be spent on trying levers on a copy."""
    flow, notes = _flow(track, tracks, watch), [*watch.notes, *_piling_up(track)]
    rates = () if watch.stopped() else track.record.usual_rates()  # who stops within a warm-up knows that it is one
    if rates and all(rates) and flow.optimizer is not None and flow.optimizer.given:
        flow = replace(flow, optimizer=replace(flow.optimizer, learning_rates=rates))
    affordable = (_RUNS + _TERMS * (flow.loss.term is not None)) * watch.pace() < seconds
    sound = flow.nonfinite is None or flow.nonfinite.step > 0  # else no lever is to blame
    if track.trial is not None and len(tracks) == 1 and sound and affordable:
        try:
            flow = replace(flow, experiments=tried(track.trial, flow, rates if all(rates) else ()))
            flow = examined(track.trial, flow)
        except Exception as error:  # whatever the user's network raises; the training seen is judged all the same
            notes = [*notes, f"the first batch could not be trained on again: {type(error).__name__}: {error}"]
    diagnosis = judge(flow)
    if diagnosis.learns is False and _played(track, tracks):
        diagnosis, notes = replace(diagnosis, learns=None), [*notes, _PLAYED]
    return replace(diagnosis, notes=(*diagnosis.notes, *notes))


def _played(track: Track, tracks: list[Track]) -> bool:
    """Is it one of two players, of whom each trains on what the other makes of it?"""
    return any(track.against(other) or other.against(track) for other in tracks if other is not track)


def _flow(track: Track, tracks: list[Track], watch: Watch) -> Flow:
    """What was seen of one optimizer, with what of the whole program is told beside it."""
    main = watch.roster.main()
    first = main is not None and main.reference is track.reference
    if track.nonfinite is None and first and watch.outputs.mostly_skipped():
        track.nonfinite = watch.outputs.birth
    forgotten = watch.orphans.cuts(watch.roster.tracks) if track is tracks[0] else ()
    return assemble(track, tracks, watch.roots, forgotten)


def _piling_up(track: Track) -> list[str]:
    """A note on gradients that nobody takes away."""
    found = [step for step, share in track.record.carried.items() if 0 < share < math.inf]
    if len(found) < 2:
        return []
    looked = f"{len(found)} of the {len(track.record.carried)} later steps looked at"
    return [f"at {looked} .grad still held the gradients of earlier steps, as without zero_grad()"]


def _print(stream: TextIO, diagnosis: Diagnosis, title: str) -> None:
    terminal = stream.isatty()
    width = min(shutil.get_terminal_size((100, 24)).columns, 120) if terminal else 100
    heading = f"unvanish: {title}\n" if title else ""
    text = f"{heading}{render(diagnosis, width=width, color=terminal and 'NO_COLOR' not in os.environ)}"
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()
