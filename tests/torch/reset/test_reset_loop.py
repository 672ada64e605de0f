"""The schedule, the cap, maturity, dry runs, the log; and nothing of the user's changes beyond the reset."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from reset_nets import DEAD, ResNetLike, TransformerBlock, plain, seeded
from torch import nn

from unvanish.torch.reset import Dead, Dormant, LowUtility, Saturated, SelfNormalized, UnitReset

X = torch.randn(64, 4, generator=seeded(3))


def net(dead=(3,)):
    torch.manual_seed(0)
    model = plain(4, 8, 8, 2)
    model[0].bias.data[list(dead)] = DEAD
    return model


def reset_of(model, score=None, **settings):
    settings = {"every": 1, "maturity": 0, **settings}
    return UnitReset(model, torch.optim.Adam(model.parameters()), score or Dead(patience=1), **settings)


def snapshot(model, optimizer):
    tensors = {**model.state_dict(keep_vars=True), **{f"grad {n}": p.grad for n, p in model.named_parameters()}}
    kept = {k: None if t is None else t.detach().clone() for k, t in tensors.items()}
    return kept, copy.deepcopy(optimizer.state_dict()), torch.get_rng_state(), [m.training for m in model.modules()]


def assert_same(first, second):
    assert first[0].keys() == second[0].keys()
    for key, value in first[0].items():
        assert value is second[0][key] or torch.equal(value, second[0][key]), key
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(first[2], second[2])
    assert first[3] == second[3]


def looked_at():
    yield net(), X
    yield ResNetLike().train(), torch.randn(4, 2, 6, 6)
    yield TransformerBlock(dropout=0.3).train(), torch.randn(4, 5, 8)


@pytest.mark.parametrize(("model", "x"), list(looked_at()), ids=["mlp", "resnet", "transformer"])
@pytest.mark.parametrize("score", ["dead", "saturated", "dormant", "low-utility", "self-normalized"])
def test_a_dry_run_and_a_check_without_finding_change_no_bit(model, x, score):
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().sum().backward()
    optimizer.step()
    reset = UnitReset(model, optimizer, score, every=1, maturity=0)
    state, before = reset.state_dict(), snapshot(model, optimizer)
    first = reset.check(x, dry_run=True)
    assert_same(before, snapshot(model, optimizer))
    assert reset.check(x, dry_run=True) == first
    assert reset.state_dict()["memory"] == state["memory"] == {}
    assert reset.events == []
    if not first.events:
        reset.step(x)
        assert_same(before, snapshot(model, optimizer))


def test_a_dry_run_tells_what_then_happens():
    model = net((3, 5))
    reset = reset_of(model)
    before = copy.deepcopy(model.state_dict())
    told = reset.check(X, dry_run=True)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert told.events[0].output_change is None
    done = reset.check(X)
    assert [(e.layer, e.units, e.score, e.values) for e in told.events] == [
        (e.layer, e.units, e.score, e.values) for e in done.events
    ]
    assert "dry run" in str(told)
    assert "2 of 8 units (3, 5) dead" in str(done)


def test_a_reset_leaves_random_streams_gradients_and_mode():
    model = net()
    model(X).sum().backward()
    reset = reset_of(model)
    before = snapshot(model, reset._surgeon.optimizer)
    assert reset.step(X)
    after = snapshot(model, reset._surgeon.optimizer)
    assert torch.equal(before[2], after[2])
    assert before[3] == after[3]
    for name in before[0]:
        assert not name.startswith("grad") or torch.equal(before[0][name], after[0][name])


def test_every_nth_step_and_patience():
    reset = reset_of(net(), Dead(patience=2), every=5)
    found = [bool(reset.step(X)) for _ in range(12)]
    assert [t for t, f in enumerate(found, 1) if f] == [10]
    assert [e.step for e in reset.events] == [10]


def test_a_new_unit_starts_without_a_past():
    model = net()
    reset = reset_of(model, Dead(patience=2))
    found = []
    for _ in range(6):
        found.append(bool(reset.step(X)))
        model[0].bias.data[3] = DEAD  # dies again at once
    assert [t for t, f in enumerate(found, 1) if f] == [2, 4, 6]


def test_inputs_are_not_looked_at_between_checks():
    reset = reset_of(net(), every=100)
    assert reset.step(None) == ()


def test_maturity_spares_young_units_after_the_start_and_after_a_reset():
    model = net()
    reset = reset_of(model, maturity=4)
    found = []
    for _ in range(10):
        found.append(bool(reset.step(X)))
        model[0].bias.data[3] = DEAD  # dies again at once
    assert [t for t, f in enumerate(found, 1) if f] == [4, 8]


def test_a_dead_layer_is_not_reset_at_once():
    model = net(range(8))
    reset = reset_of(model, max_share=0.4)
    (first, *_) = reset.step(X)
    assert (len(first.units), first.waiting, first.of) == (3, 5, 8)
    assert not (model[0].weight[0] == 0).all()
    total = {*first.units}
    for _ in range(2):
        (event, *_) = reset.step(X)
        total |= set(event.units)
    assert total == set(range(8))


def test_the_cap_takes_the_least_alive_and_spares_no_layer_from_the_last_unit():
    torch.manual_seed(0)
    model = plain(4, 8, 2)
    model[0].bias.data += torch.tensor([0, 0, -0.2, -0.4, -1e3, 0, 0, 0])
    (event,) = reset_of(model, Dormant(tau=0.99), max_share=1e-6).step(X)
    assert event.units == (4,)
    assert event.waiting >= 1


def test_two_scores_share_the_units_and_the_room():
    torch.manual_seed(0)
    model = plain(4, 8, 2, activation=nn.Tanh)
    model[0].bias.data[1], model[0].bias.data[2] = 1e3, 4.0
    events = reset_of(model, (Dead(patience=1), Saturated(share=0.7, patience=1))).step(X)
    assert [(e.score, e.units) for e in events] == [("dead", (1,)), ("saturated", (2,))]
    model[0].bias.data[1], model[0].bias.data[2] = 1e3, 4.0
    reset = reset_of(model, (Dead(patience=1), Saturated(share=0.7, patience=1)), max_share=0.1)
    assert [(e.score, e.units) for e in reset.step(X)] == [("dead", (1,))]
    assert [(e.score, e.units) for e in reset.step(X)] == [("saturated", (2,))]


@pytest.mark.parametrize("score", [Dead(), Dormant(), LowUtility(rate=0.1), SelfNormalized(), ("dead", "dormant")])
def test_a_saved_state_goes_on_as_if_there_had_been_no_break(score, tmp_path):
    """Same events, same weights, as one run without a break."""

    def run(steps, model, optimizer, reset, start=0):
        for t in range(start, steps):
            x = torch.randn(32, 4, generator=seeded(t))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            if t in (7, 20):
                model[2].bias.data[t % 8] = DEAD
            reset.step(x)

    whole, part = net(), net()
    opts = [torch.optim.Adam(m.parameters()) for m in (whole, part)]
    resets = [UnitReset(m, o, score, every=2, maturity=3) for m, o in zip((whole, part), opts, strict=True)]
    run(40, whole, opts[0], resets[0])
    run(21, part, opts[1], resets[1])
    torch.save({"m": part.state_dict(), "o": opts[1].state_dict(), "r": resets[1].state_dict()}, tmp_path / "c")
    saved = torch.load(tmp_path / "c", weights_only=True)
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    reset = UnitReset(model, optimizer, score, every=2, maturity=3)
    model.load_state_dict(saved["m"])
    optimizer.load_state_dict(saved["o"])
    reset.load_state_dict(saved["r"])
    run(40, model, optimizer, reset, start=21)
    assert resets[0].events == reset.events
    assert reset.events, "otherwise this test shows nothing"
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_state_of_another_model_is_refused():
    reset = reset_of(net())
    reset.step(X)
    with pytest.raises(ValueError, match="no layers"):
        reset_of(nn.Sequential(nn.Conv1d(2, 3, 1))).load_state_dict(
            {**reset.state_dict(), "born": {"elsewhere": torch.zeros(8)}}
        )
    with pytest.raises(ValueError, match="lacks"):
        reset.load_state_dict({"step": 3})


def test_the_same_seed_draws_the_same_and_another_does_not():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 10)
        model = net()
        torch.rand(seed + 5)  # the user's stream has no say
        reset_of(model, seed=seed).step(X)
        weights.append(model[0].weight[3].tolist())
    assert weights[0] == weights[1] != weights[2]


class Random(nn.Module):
    """Skips a layer at random, by Python's own random numbers."""

    def __init__(self, ways):
        super().__init__()
        self.body, self.extra, self.ways = plain(4, 8, 8), nn.Linear(8, 8), iter(ways)

    def forward(self, x):
        h = torch.relu(self.body(x))
        return torch.relu(self.extra(h)) if next(self.ways) else h


class Either(Random):
    """One of two layers at random: the same functions, other weights."""

    def __init__(self, ways):
        super().__init__(ways)
        self.other = nn.Linear(8, 8)

    def forward(self, x):
        return (self.extra if next(self.ways) else self.other)(torch.relu(self.body(x)))


def test_the_same_functions_on_other_weights_are_another_wiring():
    reset = reset_of(Either([1, 1, 0, 0, 0, 0]))
    assert [w.layer for w in reset.check(X).not_resettable] == ["extra", "other"]
    with pytest.raises(ValueError, match="different calls in two passes"):
        reset_of(Either([0, 1, 0, 1, 0, 1])).check(X)


def test_a_model_that_is_wired_anew_is_looked_at_anew():
    reset = reset_of(Random([1, 1, 0, 0, 0, 0]))
    assert reset.check(X).checked == ("body.0", "body.2")
    assert reset.check(X).checked == ("body.0",)


def test_a_model_that_is_wired_differently_in_each_pass_is_refused():
    with pytest.raises(ValueError, match="different calls in two passes"):
        reset_of(Random([0, 1, 0, 1, 0, 1])).check(X)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # raised by torch's own import of its compiler
def test_compiled_and_parallel_wrappers_are_looked_through():
    model = net()
    reset = UnitReset(torch.compile(model), torch.optim.Adam(model.parameters()), Dead(patience=1), maturity=0)
    assert reset.check(X).events[0].layer == "0"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"every": value} for value in (0, 1.5, math.nan, "a", None, True)),
        *({"maturity": value} for value in (-1, 1.5, math.nan, "a")),
        *({"max_share": value} for value in (0, 1.5, math.nan, "a", None)),
        *({"seed": value} for value in ("a", 1.5, None)),
        *({"init": value} for value in ("he", None, 3)),
        *({"score": value} for value in ("x", 3, None, [3], [], Dead)),
        {"model": None},
        {"model": "m"},
        {"optimizer": "adam"},
        {"optimizer": None},
    ],
    ids=str,
)
def test_wrong_settings(wrong):
    model = net()
    settings = {"model": model, "optimizer": torch.optim.Adam(model.parameters()), **wrong}
    with pytest.raises(ValueError, match=r"\. .+\. .+"):
        UnitReset(**settings)


@pytest.mark.parametrize("state", [None, [], {}, 3])
def test_what_is_no_state(state):
    with pytest.raises(ValueError, match=r"it lacks .*\. It must .+\. Start .+\."):
        reset_of(net()).load_state_dict(state)
