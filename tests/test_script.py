"""``unvanish run`` end to end: real scripts in subprocesses, with and without us."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from signal import SIGINT
from subprocess import PIPE
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from unvanish.diagnosis import Diagnosis
from unvanish.torch.run.track import following

pytest.importorskip("torch")
PROGRAMS = Path(__file__).parent / "programs"
SOURCE = Path(__file__).parents[1] / "src"


class Ran(NamedTuple):
    code: int
    out: str
    err: str
    diagnoses: tuple[Diagnosis, ...] = ()


def python(*arguments: str, cwd: Path = PROGRAMS) -> Ran:
    """A Python of its own."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}


@cache
def zygote() -> subprocess.Popen[str]:
    """A Python that has imported PyTorch already, and forks."""
    command = [sys.executable, str(PROGRAMS / "zygote.py")]
    return subprocess.Popen(command, stdin=PIPE, stdout=PIPE, env=environment(), text=True)


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    if zygote.cache_info().currsize:
        zygote().communicate()


def forked(*arguments: str, cwd: Path = PROGRAMS) -> Ran:
    """The same as ``python``, without the seconds of imports."""
    with TemporaryDirectory() as folder:
        files = {name: str(Path(folder) / name) for name in ("out", "err")}
        server = zygote()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps({"arguments": arguments, "cwd": str(cwd), **files}) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Ran(code, Path(files["out"]).read_text(), Path(files["err"]).read_text())


@cache
def watched(*arguments: str, options: tuple[str, ...] = (), cwd: Path | None = None) -> Ran:
    """Run with us; every program once per test session."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "diagnosis.json"
        line = ("run", "--json", str(file), *options, *arguments)
        ran = forked("unvanish", *line) if cwd is None else python("-m", "unvanish", *line, cwd=cwd)
        found = json.loads(file.read_text()) if file.exists() else []
    texts = [json.dumps(one) for one in (found if isinstance(found, list) else [found])]
    return ran._replace(diagnoses=tuple(Diagnosis.from_json(text) for text in texts))


@cache
def alone(*arguments: str, cwd: Path | None = None) -> Ran:
    return forked(*arguments) if cwd is None else python(*arguments, cwd=cwd)


def same(*arguments: str, cwd: Path | None = None) -> Ran:
    """Run with us and without: everything the script prints, weights and random numbers among it, must be equal."""
    ran, expected = watched(*arguments, cwd=cwd), alone(*arguments, cwd=cwd)
    assert ran.out == expected.out
    assert "stopped watching" not in ran.err, ran.err
    assert ran.code == expected.code % 256 or (expected.code == 0 and ran.code == 1) or expected.code == -SIGINT
    return ran


def test_an_unchanged_script_prints_the_same_and_is_healthy() -> None:
    ran = same("digits.py", "0", "--flag", "-x", cwd=PROGRAMS)
    (diagnosis,) = ran.diagnoses
    flow = diagnosis.flow
    assert (ran.code, diagnosis.findings) == (0, ())
    assert [site.name for site in flow.sites[:3]] == ["0", "1", "2"]
    assert flow.origin == "run"
    assert [s.step for s in flow.snapshots] == [1, 2, 5, 10, 20, 50]
    assert len(flow.steps) == 60
    assert all(math.isfinite(step.loss) for step in flow.steps)
    assert flow.loss.kind == "cross_entropy"
    assert flow.loss.floor == pytest.approx(math.log(10), abs=0.3)
    assert flow.batch_size == 64
    assert all(p.in_optimizer and p.reached and p.used and p.log_update is not None for p in flow.parameters)
    assert flow.inputs[0].shape == (64, 64)
    assert "step 50" in ran.err


def test_the_exit_code_of_the_script_wins() -> None:
    assert same("digits.py", "7", cwd=PROGRAMS).code == 7


def test_module_runs_as_python_m() -> None:
    expected = python("-m", "programs.digits", "0", cwd=PROGRAMS.parent)
    ran = watched("-m", "programs.digits", "0", cwd=PROGRAMS.parent)
    assert ran.out == expected.out
    assert ran.code == 0


def test_a_sick_network_is_named_by_its_cause() -> None:
    ran = same("sick.py")
    assert ran.code == 1
    root = ran.diagnoses[0].findings[0]
    assert root.cause == "initialization"
    assert root.where[0] == "2"
    assert "initialization" in ran.err


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("tanh_bias_four", "saturation"),
        ("relu_bias_minus_ten", "dead-units"),
        ("layernorm_of_one", "normalization"),
        ("sixteen_bit_pixels", "input-scale"),
        ("softmax_twice", "loss-mismatch"),
        ("detached_encoder", "disconnected"),
        ("padding_mask_turned", "disconnected"),
        ("adam_one", "learning-rate-high"),
        ("schedule_at_zero", "learning-rate-low"),
        ("relu_standard_normal", "exploding"),
        ("conv_normal", "exploding"),
        ("regression_diverges", "learning-rate-high"),
        ("copied_rows", "symmetry"),
        ("missing_target", "non-finite"),
        ("dropout_keeps_little", "dead-units"),
        ("triplets_collapse", "loss-mismatch"),
        ("lora", None),
        ("resnet", None),
    ],
)
def test_a_watched_program_of_the_zoo_is_judged_as_by_diagnose(name: str, cause: str | None) -> None:
    findings = watched("zoo_program.py", name).diagnoses[0].findings
    assert (findings[0].cause if findings else None) == cause


def test_a_state_seen_detached_at_every_step_is_noted_in_a_script_that_learns_all_the_same() -> None:
    notes = watched("zoo_program.py", "detached_state").diagnoses[0].notes
    assert any("only the last 1 of 8 calls of cell in the loss's graph" in note for note in notes)


def test_steps_stops_the_script() -> None:
    ran = watched("digits.py", options=("--steps", "11"))
    assert len(ran.diagnoses[0].flow.steps) == 11
    assert "accuracy" in ran.out
    assert "__main__" not in ran.out


def test_two_networks_have_a_flow_each() -> None:
    ran = same("gan.py")
    generator, discriminator = (diagnosis.flow for diagnosis in ran.diagnoses)
    if generator.parameters[0].name.startswith("discriminator"):
        generator, discriminator = discriminator, generator
    assert {p.name.partition(".")[0] for p in generator.parameters} == {"generator"}
    assert {p.name.partition(".")[0] for p in discriminator.parameters} == {"discriminator"}
    assert generator.sites[0].name == "generator.0"
    assert generator.sites[-2].name == "discriminator.3"
    assert all(p.reached for p in (*generator.parameters, *discriminator.parameters))
    assert generator.inputs[0].shape == (64, 8)
    assert discriminator.inputs[0].shape == (64, 2)
    assert not generator.cuts
    assert not discriminator.cuts
    assert "Adam of generator" in ran.err
    assert all(diagnosis.learns is not False for diagnosis in ran.diagnoses)  # two players


@pytest.mark.parametrize(
    ("fault", "options"), [("none", ()), ("softmax", ()), ("high", ()), ("none", ("--steps", "11"))]
)
def test_optimizers_that_step_on_one_loss_are_told_of_as_one_with_several_groups(
    fault: str, options: tuple[str, ...]
) -> None:
    (one,), (two,) = (watched("divided.py", how, fault, options=options).diagnoses for how in ("one", "two"))
    assert [finding.cause for finding in two.findings] == [finding.cause for finding in one.findings]
    assert two.flow.experiments == one.flow.experiments
    assert len(two.flow.experiments) > 0
    assert two.flow.optimizer == one.flow.optimizer
    assert two.flow.parameters == one.flow.parameters
    assert two.flow.sites == one.flow.sites
    looked = [(step.index, step.loss) for step in two.flow.steps]
    assert looked == [(step.index, step.loss) for step in one.flow.steps]
    last = 10 if options else len(looked)  # after the first optimizer's last step the script ends
    facts = [[step for step in d.flow.steps[:last] if step.log_grad is not None] for d in (two, one)]
    assert len(facts[1]) >= 4
    for mine, theirs in zip(*facts, strict=True):
        assert mine.log_grad == pytest.approx(theirs.log_grad, abs=1e-6)
        assert mine.clip == pytest.approx(theirs.clip, rel=1e-6)
        assert (mine.index, mine.update_ratio, mine.rate) == (theirs.index, theirs.update_ratio, theirs.rate)


def test_an_optimizer_whose_steps_never_meet_a_gradient_is_reported() -> None:
    ran = same("gan.py", "cut")
    causes = {d.findings[0].cause: d for d in ran.diagnoses if d.findings}
    assert list(causes) == ["disconnected"]
    assert causes["disconnected"].findings[0].where == ("generator.2", "generator.0")
    assert {p.name.partition(".")[0] for p in causes["disconnected"].flow.parameters} == {"generator"}
    assert len(ran.diagnoses) == 2
    assert "not reported" not in ran.err


@pytest.mark.parametrize("mode", ["plain", "autocast", "scaler"])
def test_accumulation_and_clipping(mode: str) -> None:
    ran = same("accumulation.py", mode)
    flow = ran.diagnoses[0].flow
    first = flow.steps[0]
    assert len(flow.steps) == 30
    assert first.clip == pytest.approx(0.13, abs=0.03)
    assert first.log_grad == pytest.approx(math.log(0.1), abs=1e-4)
    assert first.loss == pytest.approx(0.35, abs=0.03)
    gradients = [p.log_grad for p in flow.parameters if p.log_grad is not None]
    assert math.hypot(*map(math.exp, gradients)) == pytest.approx(0.1, abs=1e-4)
    site = next(site for site in flow.sites if site.op == "tanh")
    assert site.log_grad_out == pytest.approx(-3.79, abs=0.05), "a site's gradient is unscaled and not clipped"


def test_steps_a_scaler_leaves_out_are_no_fault() -> None:
    ran = same("accumulation.py", "overflow")
    flow = ran.diagnoses[0].flow
    skipped = [step.index for step in flow.steps if step.skipped]
    assert skipped[:2] == [0, 1]
    assert flow.nonfinite is None
    assert all(site.log_grad_out is not None and math.isfinite(site.log_grad_out) for site in flow.sites)


@pytest.mark.parametrize("backend", [(), ("aot_eager",)])
def test_a_compiled_model_runs_eager_only_where_we_look(backend: tuple[str, ...]) -> None:
    ran = same("compiled.py", *backend)
    assert ran.err.count("torch.compile is set aside") == 2, "said once at once, once in the report"
    assert ran.diagnoses[0].flow.sites[0].name == "0"
    assert "global hooks" not in ran.err


@pytest.mark.parametrize(
    "habit",
    [
        *("lbfgs", "retain", "loader", "functional", "lstm", "pinn", "vae", "transformer", "by_hand", "by_grad"),
        *("vmapped", "traced"),
    ],
)
def test_habits_leave_no_trace_and_are_seen(habit: str) -> None:
    ran = same("habits.py", habit)
    flow = ran.diagnoses[0].flow
    assert ran.code == 0, ran.err
    assert flow.sites
    assert flow.cuts == ()
    assert all(p.reached and p.log_grad is not None and p.log_update is not None for p in flow.parameters)
    assert all(math.isfinite(step.loss) for step in flow.steps)


@pytest.mark.parametrize(
    ("fault", "cause", "place"),
    [("none", None, None), ("cut", "disconnected", "body.pooler.dense"), ("rate", "learning-rate-high", "optimizer")],
)
def test_a_trainer_of_transformers(fault: str, cause: str | None, place: str | None) -> None:
    ran = same("trainer.py", fault) if cause is None else watched("trainer.py", fault)
    (diagnosis,) = ran.diagnoses
    assert len(diagnosis.flow.steps) == 40
    assert ran.code == (0 if cause is None else 1)
    assert [(one.cause, one.where[0]) for one in diagnosis.findings] == ([] if cause is None else [(cause, place)])


def test_a_closure_counts_by_its_first_call() -> None:
    flow = same("habits.py", "lbfgs").diagnoses[0].flow
    assert len(flow.steps) == 8
    whole = math.hypot(*(math.exp(p.log_grad) for p in flow.parameters if p.log_grad is not None))
    assert flow.steps[0].log_grad == pytest.approx(math.log(whole))


def test_time_and_loose_parameters_are_named() -> None:
    flow = same("habits.py", "lstm").diagnoses[0].flow
    assert [profile.name for profile in flow.times] == ["lstm"]
    assert len(flow.times[0].log_grads) == 12
    functional = watched("habits.py", "functional").diagnoses[0].flow
    assert [p.name for p in functional.parameters] == ["w1", "w2"]
    by_hand = watched("habits.py", "by_hand").diagnoses[0].flow
    assert [p.name for p in by_hand.parameters] == ["w"]
    assert by_hand.optimizer is not None
    assert not by_hand.optimizer.given


def test_a_summed_loss_is_tried_with_smaller_steps() -> None:
    (diagnosis,) = watched("habits.py", "summed").diagnoses
    assert diagnosis.findings[0].cause == "loss-mismatch"
    none = next(one for one in diagnosis.flow.experiments if one.lever == "none")
    assert none.losses[0] == pytest.approx(diagnosis.flow.loss.value, rel=1e-4)
    assert none.floor == pytest.approx(diagnosis.flow.loss.floor, rel=1e-4)


def test_a_training_repeated_fold_after_fold_is_reported_once() -> None:
    ran = same("habits.py", "folds")
    assert len(ran.diagnoses) == 1
    assert "11 more optimizers" in ran.err


def test_a_nan_is_placed_at_a_step_nobody_looked_at() -> None:
    born = same("habits.py", "nan").diagnoses[0].flow.nonfinite
    assert born is not None
    assert (born.op, born.step, born.direction) == ("log", 7, "forward")


def test_what_is_cut_or_forgotten_is_found() -> None:
    ran = same("habits.py", "unused")
    (diagnosis,) = ran.diagnoses
    assert diagnosis.flow.cuts[0].behind == ("first",)
    assert {p.name: p.in_optimizer for p in diagnosis.flow.parameters}["head.weight"] is False
    assert diagnosis.findings[0].cause == "disconnected"


def test_an_exception_is_shown_as_python_would() -> None:
    ran = same("habits.py", "raises", cwd=PROGRAMS)
    assert ran.code == 1
    assert alone("habits.py", "raises", cwd=PROGRAMS).err in ran.err, "the same traceback, none of our frames"
    assert len(ran.diagnoses) == 1


def test_a_forward_pass_that_raises_is_the_scripts_own_affair() -> None:
    ran = same("habits.py", "raises_inside", cwd=PROGRAMS)
    assert alone("habits.py", "raises_inside", cwd=PROGRAMS).err in ran.err
    assert len(ran.diagnoses[0].flow.steps) == 12


def test_processes_started_by_spawn_find_their_main_module() -> None:
    ran = same("habits.py", "spawn", cwd=PROGRAMS)
    assert "squares [0, 1, 4]" in ran.out


def test_ctrl_c_still_reports() -> None:
    ran = same("habits.py", "interrupted", cwd=PROGRAMS)
    assert (ran.code, len(ran.diagnoses)) == (130, 1)


def test_no_training_is_a_clear_error() -> None:
    ran = watched("habits.py", "untrained")
    assert (ran.code, ran.out, ran.diagnoses) == (2, alone("habits.py", "untrained").out, ())
    assert "backward() was never called" in ran.err
    assert "Traceback" not in ran.err


def test_gradients_are_the_same_by_whatever_call() -> None:
    flow = watched("habits.py", "by_grad").diagnoses[0].flow
    whole = math.hypot(*(math.exp(p.log_grad) for p in flow.parameters if p.log_grad is not None))
    assert len(flow.steps) == 12
    assert flow.steps[0].log_grad == pytest.approx(math.log(whole))
    assert flow.steps[0].clip == pytest.approx(1)
    assert "earlier steps" not in watched("habits.py", "by_grad").err


def test_gradients_of_torch_func_are_said_not_to_be_watched() -> None:
    ran = same_without_training("transformed")
    assert "torch.func made gradients 3 times" in ran.err
    assert "no optimizer made a step" in ran.err


def test_a_thread_that_trains_is_said_not_to_be_watched() -> None:
    ran = same_without_training("threaded")
    assert "Another thread made 36 backward passes and steps: only the main thread" in ran.err


def same_without_training(habit: str) -> Ran:
    ran = watched("habits.py", habit)
    assert (ran.code, ran.out, ran.diagnoses) == (2, alone("habits.py", habit).out, ())
    return ran


def test_layers_that_each_forward_pass_builds_anew_are_found() -> None:
    (diagnosis,) = same("habits.py", "built").diagnoses
    root = diagnosis.findings[0]
    assert (root.cause, root.where[0]) == ("disconnected", "made in forward [16, 16]")


def test_gradients_that_pile_up_are_noted() -> None:
    (diagnosis,) = same("habits.py", "piling").diagnoses
    assert "at 4 of the 4 later steps looked at .grad still held the gradients of earlier steps" in diagnosis.notes[-1]


@pytest.mark.parametrize("program", [("gan.py",), ("accumulation.py", "plain"), ("habits.py", "lbfgs")])
def test_gradients_that_are_taken_away_at_some_time_do_not_pile_up(program: tuple[str, ...]) -> None:
    assert "earlier steps" not in watched(*program).err


def test_warnings_that_are_errors_break_nothing() -> None:
    ran = same("habits.py", "strict")
    assert len(ran.diagnoses[0].flow.steps) == 12
    assert "Warning" not in ran.err


def test_the_json_goes_where_the_user_was(tmp_path: Path) -> None:
    ran = forked("unvanish", "run", "--json", "found.json", str(PROGRAMS / "habits.py"), "moves", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert (tmp_path / "found.json").exists()


def test_no_script_is_a_clear_error() -> None:
    ran = watched("missing.py")
    assert ran.code == 2
    assert "There is no file 'missing.py'" in ran.err
    assert watched("-m", "no.such.module").code == 2


def test_the_schedule_thins_out() -> None:
    step, looks = 0, [0]
    while step < 10**6:
        step = following(step)
        looks.append(step)
    assert looks[:8] == [0, 1, 2, 5, 10, 20, 50, 100]
    assert len(looks) == 20
