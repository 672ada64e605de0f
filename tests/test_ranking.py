"""One root cause: order, folding, and what is said of a network without a finding."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unvanish import reading
from unvanish.flow import judge
from unvanish.ranking import UPSTREAM, rank
from unvanish.rules import _flows
from unvanish.types import Evidence, Experiment, Finding, Step, TimeProfile


def finding(cause: str, confidence: float) -> Finding:
    return Finding(cause, ("net",), confidence, "high", (Evidence("x", 1.0, "", "0"),), "m", ("r",), "s")  # type: ignore[arg-type]


findings = st.lists(
    st.builds(finding, st.sampled_from(UPSTREAM), st.floats(0.3, 1.0)), unique_by=lambda f: f.cause, max_size=6
)


@given(findings)
def test_nothing_is_lost_and_symptoms_hang_under_the_root_only(found):
    diagnosis = rank(_flows.plain(stuck=True), found)
    shown = [f for top in diagnosis.findings for f in (top, *top.symptoms)]
    assert sorted(f.cause for f in shown) == sorted(f.cause for f in found)
    assert all(not top.symptoms for top in diagnosis.findings[1:])
    assert diagnosis.healthy == (not found)


def test_a_cause_of_somebody_elses_rule_is_ranked_too() -> None:
    ours, theirs = finding("depth", 0.8), finding("too-wide", 0.8)
    assert [top.cause for top in rank(_flows.plain(stuck=True), [theirs, ours]).findings] == ["depth"]
    assert [top.cause for top in rank(_flows.plain(stuck=True), [theirs]).findings] == ["too-wide"]


@given(findings)
def test_the_order_in_which_rules_ran_does_not_matter(found):
    flow = _flows.plain(stuck=True)
    assert rank(flow, found) == rank(flow, list(reversed(found)))


def test_of_two_equally_sure_findings_the_one_upstream_is_the_root():
    diagnosis = rank(_flows.plain(stuck=True), [finding("depth", 0.9), finding("input-scale", 0.9)])
    assert [f.cause for f in diagnosis.findings] == ["input-scale"]
    assert [f.cause for f in diagnosis.findings[0].symptoms] == ["depth"]


def test_a_second_fault_of_the_program_stays_a_finding_of_its_own():
    diagnosis = rank(_flows.plain(stuck=True), [finding("disconnected", 0.97), finding("loss-mismatch", 0.97)])
    assert [f.cause for f in diagnosis.findings] == ["disconnected", "loss-mismatch"]


def test_a_network_that_stands_at_the_constant_predictors_loss_is_told_so():
    diagnosis = judge(_flows.plain(depth=20, activation="sigmoid", weights=1.9, stuck=True))
    assert any("ignores the input" in note for note in diagnosis.notes)


def test_no_finding_and_no_learning_is_not_called_learning():
    stuck = judge(_flows.plain(stuck=True), rules=())
    well = judge(_flows.plain(), rules=())
    untried = judge(replace(_flows.plain(), steps=(), experiments=()), rules=())
    assert (stuck.learns, well.learns, untried.learns) == (False, True, None)


def test_progress_needs_a_bottom():
    """A policy's loss goes to and fro about 0; a density's falls below 0 by far more than it does from step to step."""
    noise = random.Random(0)
    policy = [noise.gauss(-0.002 * i, 0.05) for i in range(40)]
    density = [40.0 - 3 * i + noise.gauss(0, 0.5) for i in range(40)]
    assert Experiment("none", 1.0, (abs(policy[0]), *policy[1:])).progress is None
    assert Experiment("none", 1.0, tuple(density)).progress == 1.0
    assert Experiment("none", 1.0, tuple(v / 100 for v in density[:12])).progress == pytest.approx(0.75, abs=0.1)
    helped = Experiment("learning-rate", 0.1, tuple(density))
    flow = replace(_flows.plain(), steps=(), experiments=(Experiment("none", 1.0, (0.01, *policy)), helped))
    assert reading.best_lever(flow, "learning-rate") is None
    assert reading.best_lever(replace(flow, experiments=(helped,)), "learning-rate") == helped


def test_progress_is_the_share_of_the_constant_predictors_loss_removed():
    half = Experiment("none", 1.0, (2.0,) * 5 + (1.0,) * 20, floor=2.0)
    worse_start = Experiment("none", 1.0, (8.0,) * 5 + (1.0,) * 20, floor=2.0)
    diverged = Experiment("none", 1.0, (2.0,) * 20 + (math.nan,) * 10, floor=2.0)
    assert half.progress == 0.5
    assert worse_start.progress == 0.5
    assert diverged.progress == 0.0
    assert Experiment("none", 1.0, (2.0, 1.0)).progress is None


def test_the_fall_over_time_ignores_padding_and_reads_exact_zero_as_everything():
    falling = TimeProfile("rnn", "rnn", tuple(float(t) for t in range(40)))
    padded = TimeProfile("rnn", "rnn", (*falling.log_grads, *([-math.inf] * 10)), padded=10)
    gone = TimeProfile("rnn", "rnn", (*([-math.inf] * 20), *([0.0] * 20)))
    assert reading.time_fall(falling) == reading.time_fall(padded) == 30.0
    assert reading.time_fall(gone) == math.inf
    assert reading.time_fall(TimeProfile("rnn", "rnn", (0.0, 1.0))) is None


def test_a_skip_ends_a_row_of_layers():
    plain = _flows.plain(depth=12)
    assert reading.plain_depth(plain) == 12
    middle = plain.sites[11]
    joined = replace(middle, kind="merge", op="add", inputs=(*middle.inputs, 3))
    skipped = replace(plain, sites=(*plain.sites[:11], joined, *plain.sites[12:]))
    assert reading.plain_depth(skipped) == 6


def test_growth_is_seen_also_where_the_loss_left_the_numbers():
    calm = [Step(i, 2.0) for i in range(5)]
    assert not reading.grew(calm)
    assert reading.grew([*calm, Step(5, 7.0)])
    assert reading.grew([*calm, Step(5, math.inf)])


def test_frozen_parameters_are_mentioned_only_where_nothing_is_learnt():
    frozen = _flows.parameter("body.weight", requires_grad=False, in_optimizer=False, log_grad=None)
    stuck, fine = _flows.plain(stuck=True), _flows.plain()
    notes = [rank(replace(one, parameters=(*one.parameters, frozen)), []).notes for one in (stuck, fine)]
    assert [any("frozen" in note for note in told) for told in notes] == [True, False]
    assert not any("frozen" in note for note in rank(stuck, []).notes)


def test_layers_with_nothing_between_them_are_noted_where_they_do_not_learn():
    stuck, fine = _flows.plain(stuck=True), _flows.plain()
    bare = tuple(s for s in stuck.sites if s.kind == "linear")
    chained = tuple(replace(s, order=k, inputs=(k - 1,) if k else ()) for k, s in enumerate(bare))
    for flow, told in ((replace(stuck, sites=chained), True), (replace(fine, sites=chained), False), (stuck, False)):
        assert any("one linear map" in note for note in rank(flow, []).notes) == told
