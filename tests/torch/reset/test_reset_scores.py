"""Scores against loops over samples, as one would write them on paper."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unvanish.torch.reset import Dead, Dormant, LowUtility, Saturated, SelfNormalized
from unvanish.torch.reset.scores import scores_of
from unvanish.torch.reset.scores.self_normalized import quantile_of_counts
from unvanish.torch.reset.slopes import Family, family_of, slope_at
from unvanish.torch.reset.statistics import UnitStatistics, measure
from unvanish.torch.reset.units import UnitAxis
from unvanish.torch.wiring import trace

ALL = torch.ones(3, dtype=torch.bool)


def statistics(*, flat=(0, 0, 0), magnitude=(1, 1, 1), steepest=(1, 1, 1), outgoing=(1, 1, 1), bounded=True, n=10):
    def vector(values):
        return torch.tensor(values, dtype=torch.float64)

    return UnitStatistics(
        vector([n] * len(flat)), vector(flat), vector(magnitude), vector(steepest), vector(outgoing), Family(1, bounded)
    )


def op_of(activation):
    return trace(nn.Sequential(activation), torch.zeros(2, 3, dtype=torch.float64)).ops[0]


class Own(nn.Module):
    """An activation of the user's."""

    def forward(self, x):
        return torch.erf(x)


@pytest.mark.parametrize(
    ("activation", "derivative", "best", "bounded"),
    [
        (nn.Tanh(), lambda u: 1 / math.cosh(u) ** 2, 1.0, True),
        (nn.Sigmoid(), lambda u: math.exp(-u) / (1 + math.exp(-u)) ** 2, 0.25, True),
        (nn.Softsign(), lambda u: 1 / (1 + abs(u)) ** 2, 1.0, True),
        (nn.Hardtanh(), lambda u: float(abs(u) < 1), 1.0, True),
        (nn.ReLU6(), lambda u: float(0 < u < 6), 1.0, True),
        (Own(), lambda u: 2 / math.sqrt(math.pi) * math.exp(-u * u), 2 / math.sqrt(math.pi), True),
        (nn.ReLU(), lambda u: float(u > 0), 1.0, False),
        (nn.LeakyReLU(0.1), lambda u: 1.0 if u > 0 else 0.1, 1.0, False),
        (nn.ELU(), lambda u: 1.0 if u > 0 else math.exp(u), 1.0, False),
        (nn.Softplus(), lambda u: 1 / (1 + math.exp(-u)), 1.0, False),
        (nn.PReLU(3), lambda u: 1.0 if u > 0 else 0.25, 1.0, False),
    ],
)
def test_slopes_of_any_activation_are_the_derivative_on_paper(activation, derivative, best, bounded):
    op = op_of(activation.double())
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    expected = torch.tensor([[derivative(u) for u in row] for row in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(slope_at(op, x), expected, rtol=1e-9, atol=1e-12)
    family = family_of(op, x)
    assert family.best_slope == pytest.approx(best, rel=1e-3)
    assert family.bounded is bounded


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31), st.sampled_from([1, 3, -1]))
def test_statistics_are_loops_over_samples_and_places(batch, units, places, seed, axis):
    """Channels first (axis 1) or last; also entries c * places ... of a flattened tensor (axis 3 stands for it)."""
    generator = torch.Generator().manual_seed(seed)
    u = 4 * torch.randn(batch, units, places, dtype=torch.float64, generator=generator)
    op = op_of(nn.Tanh())
    numbers = torch.arange(1, units + 1)
    if axis == 1:
        x, where = u, UnitAxis(-2, numbers, units)
    elif axis == -1:
        x, where = u.movedim(1, -1), UnitAxis(-1, numbers, units)
    else:
        x, where = u.flatten(1), UnitAxis(-1, numbers.repeat_interleave(places), units)
    found = measure(op, Family(1.0, True), x, torch.tanh(x), where)
    for j in range(units):
        values = [float(u[n, j, p]) for n in range(batch) for p in range(places)]
        slopes = [1 - math.tanh(v) ** 2 for v in values]
        assert found.samples[j] == len(values)
        assert found.flat[j] == sum(s < 0.05 for s in slopes)
        assert float(found.steepest[j]) == pytest.approx(max(slopes), rel=1e-9, abs=1e-15)
        assert float(found.magnitude[j]) == pytest.approx(sum(abs(math.tanh(v)) for v in values), rel=1e-12)


def test_dead_needs_silence_at_several_checks_in_a_row():
    score, state = Dead(patience=3), {}
    quiet, loud = statistics(steepest=(0, 1e-9, 0.5)), statistics(steepest=(0, 1, 0.5))
    flags = [score.judge(s, state, ALL).flagged.tolist() for s in (quiet, quiet, loud, quiet, quiet, quiet)]
    assert flags[1] == [False] * 3
    assert flags[2] == [True, False, False]
    assert flags[4] == [True, False, False]
    assert flags[5] == [True, True, False]


def test_a_slope_that_is_not_a_number_is_not_a_dead_unit():
    assert not Dead(patience=1).judge(statistics(steepest=(math.nan, 1, 1)), {}, ALL).flagged.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("score", [Dormant(), LowUtility(rate=1.0), SelfNormalized(minimum=1, maximum=1), Dead()])
def test_a_batch_that_overflows_kills_nobody_and_is_forgotten(score, bad):
    """One infinite unit would make all others dormant beside it, and an average never gets rid of a NaN."""
    memory, clean = {}, {}
    sick = statistics(magnitude=(bad, bad, bad), steepest=(math.nan,) * 3)
    for _ in range(3):
        assert not score.judge(sick, memory, ALL).flagged.any()
    if isinstance(score, LowUtility):
        memory["owed"].zero_()
    after, expected = (score.judge(statistics(magnitude=(1, 2, 3)), kept, ALL) for kept in (memory, clean))
    assert torch.equal(after.flagged, expected.flagged)
    assert torch.equal(after.values, expected.values)


def test_one_infinite_unit_makes_no_other_dormant():
    assert not Dormant().judge(statistics(magnitude=(math.inf, 1, 1)), {}, ALL).flagged.any()


def test_low_utility_passes_over_a_unit_that_is_not_finite():
    score, memory = LowUtility(rate=0.5), {}
    judged = score.judge(statistics(magnitude=(math.nan, 2, 3)), memory, ALL)
    assert judged.flagged.tolist() == [False, True, False]
    assert memory["utility"].isfinite().all()


def test_saturated_by_the_share_of_flat_samples_and_only_where_the_activation_is_bounded():
    score = Saturated(share=0.9, patience=1)
    assert score.judge(statistics(flat=(10, 9, 8)), {}, ALL).flagged.tolist() == [True, True, False]
    assert not score.judge(statistics(flat=(10, 9, 8), bounded=False), {}, ALL).flagged.any()


def test_activity_cannot_see_saturation():
    """|h| of a tanh stuck at 1 is the layer's liveliest: ReDo's score misses it, the derivative does not."""
    u = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u[:, 1] += 20
    found = measure(op_of(nn.Tanh()), Family(1.0, True), u, torch.tanh(u), UnitAxis(-1, torch.arange(1, 4), 3))
    assert not Dormant(tau=0.1).judge(found, {}, ALL).flagged.any()
    assert Dormant().judge(found, {}, ALL).values.argmax() == 1
    assert Saturated(patience=1).judge(found, {}, ALL).flagged.tolist() == [False, True, False]


def test_dormant_is_activity_relative_to_the_layers_mean():
    judged = Dormant(tau=0.1).judge(statistics(magnitude=(10, 0.5, 0)), {}, ALL)
    mean = (10 + 0.5 + 0) / 3
    torch.testing.assert_close(judged.values, torch.tensor([10 / mean, 0.5 / mean, 0], dtype=torch.float64))
    assert judged.flagged.tolist() == [False, False, True]
    silent = Dormant().judge(statistics(magnitude=(0, 0, 0)), {}, ALL)
    assert silent.values.tolist() == [0, 0, 0]


def test_low_utility_is_a_bias_corrected_average_and_saves_up_fractions():
    score, state = LowUtility(rate=0.25, decay=0.5), {}
    magnitudes, outgoing = [(1, 2, 3), (5, 1, 1), (2, 2, 9)], (2, 1, 1)
    utility, resets = np.zeros(3), []
    for t, magnitude in enumerate(magnitudes, 1):
        judged = score.judge(statistics(magnitude=magnitude, outgoing=outgoing), state, ALL)
        utility = 0.5 * utility + 0.5 * np.array(magnitude) / 10 * np.array(outgoing)
        np.testing.assert_allclose(judged.values.numpy(), utility / (1 - 0.5**t), rtol=1e-12)
        resets.append(judged.flagged.nonzero().flatten().tolist())
    # 0.75 owed, then 1.5 -> one, then 1.25 -> one: the lowest each time
    assert resets[0] == []
    assert [len(r) for r in resets] == [0, 1, 1]
    assert resets[2] == [int(utility.argmin())]


def test_low_utility_spares_units_that_are_not_mature():
    mature = torch.tensor([False, True, True])
    judged = LowUtility(rate=0.5).judge(statistics(magnitude=(0, 2, 3)), {}, mature)
    assert judged.flagged.tolist() == [False, True, False]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=0, max_size=30), st.floats(0.01, 1.0))
def test_quantile_of_counts_is_numpys_inverted_cdf(values, share):
    counts = torch.tensor([[values.count(g) for g in range(10)]])
    found = int(quantile_of_counts(counts, share))
    if not values:
        assert found == 9
    else:
        reached = [g for g in range(10) if sum(v <= g for v in values) >= share * len(values)]
        assert found == reached[0]


def test_self_normalised_gives_each_unit_its_own_patience():
    """Unit 0 fires always, unit 1 every fifth check; both then fall silent. Oracle: lists of pauses."""
    score, state = SelfNormalized(percentile=0.9, minimum=2, maximum=50), {}
    fires = [(True, t % 5 == 4, True) for t in range(40)] + [(False, False, True)] * 12
    pauses, silent, first = [[], [], []], [0, 0, 0], [None, None, None]
    for t, row in enumerate(fires):
        judged = score.judge(statistics(steepest=tuple(float(f) for f in row)), state, ALL)
        for j, fired in enumerate(row):
            silent[j] += 1
            if fired:
                pauses[j].append(silent[j])
                silent[j] = 0
            allowed = np.quantile(pauses[j], 0.9, method="inverted_cdf") if pauses[j] else 50
            expected = silent[j] > min(max(allowed, 2), 50)
            assert bool(judged.flagged[j]) == expected, (t, j)
            if expected and first[j] is None:
                first[j] = t
    assert first == [42, 45, None]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Dead(patience=0),
        lambda: Dead(patience=1.5),
        lambda: Dead(zero=math.nan),
        lambda: Dead(zero=-1),
        lambda: Dead(zero="a"),
        lambda: Saturated(share="a"),
        lambda: Saturated(share=math.nan),
        lambda: Dormant(tau=None),
        lambda: LowUtility(decay="a"),
        lambda: SelfNormalized(maximum=math.inf),
        lambda: Saturated(share=99),
        lambda: Dormant(tau=1),
        lambda: Dormant(tau=math.nan),
        lambda: LowUtility(rate=-1),
        lambda: LowUtility(decay=1.0),
        lambda: SelfNormalized(minimum=10, maximum=5),
        lambda: scores_of("ded"),
        lambda: scores_of(()),
        lambda: scores_of(("dead", Dead(patience=2))),
    ],
)
def test_wrong_settings_say_what_is_right(wrong):
    with pytest.raises(ValueError, match=r"\. .+\. .+\."):
        wrong()


def test_relu_family_dies_and_leaky_does_not():
    x = torch.full((20, 1), -30.0)
    axis = UnitAxis(-1, torch.tensor([1]), 1)
    for activation, dies in ((F.relu, True), (F.gelu, True), (F.silu, True), (F.elu, True), (F.leaky_relu, False)):

        class Net(nn.Module):
            def forward(self, x, activation=activation):
                return activation(x)

        op = op_of(Net())
        found = measure(op, family_of(op, x), x, None, axis)
        judged = Dead(patience=1).judge(replace(found), {}, torch.ones(1, dtype=torch.bool))
        assert bool(judged.flagged) is dies, activation
