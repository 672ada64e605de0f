"""What an optimizer remembers of the reset entries is gone; all else of its state is the same, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from reset_nets import DEAD, plain
from torch import nn

from unvanish.torch.reset import Dead, UnitReset
from unvanish.torch.reset.optimizer_state import forget
from unvanish.torch.rmsprop import RMSprop

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "rmsprop foreach": lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.25),
    "adadelta": torch.optim.Adadelta,
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.03),
    "unvanish": lambda p: RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "unvanish, v0": lambda p: RMSprop(p, lr=0.01, initial_accumulator=1.0),
}
STARTS = {"rprop": {"step_size": 0.03}, "adagrad": {"sum": 0.25}, "unvanish, v0": {"square_avg": 1.0}}


def trained(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()
    optimizer = make(model.parameters())
    x = torch.randn(32, 4, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    model[1].bias.data[2] = DEAD
    return model, optimizer, x


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exactly_the_entries_of_the_unit_are_forgotten(name):
    model, optimizer, x = trained(OPTIMIZERS[name])
    before = copy.deepcopy({key: optimizer.state[p] for key, p in model.named_parameters()})
    (event,) = UnitReset(model, optimizer, Dead(patience=1), every=1, maturity=0).step(x)
    assert event.units == (2,)
    rows = {"0.weight": 2, "0.bias": 2, "1.weight": 2, "1.bias": 2, "3.weight": (slice(None), 2), "3.bias": None}
    shaped = 0
    for key, parameter in model.named_parameters():
        for what, old in before[key].items():
            new = optimizer.state[parameter][what]
            if not isinstance(old, torch.Tensor) or old.shape != parameter.shape:
                assert new == old, (key, what)
                continue
            shaped += 1
            expected = old.clone()
            if rows[key] is not None:
                if what != "prev":  # Rprop itself sets it to 0 where the sign has changed
                    assert expected[rows[key]].abs().max() > 0, "otherwise this test shows nothing"
                expected[rows[key]] = STARTS.get(name, {}).get(what, 0.0)
            assert torch.equal(new, expected), (key, what)
    assert shaped >= 6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on(name):
    model, optimizer, x = trained(OPTIMIZERS[name])
    UnitReset(model, optimizer, Dead(patience=1), every=1, maturity=0).step(x)
    row = model[0].weight[2].clone()
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().sum().backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not torch.equal(model[0].weight[2], row)
    assert model[3].weight[:, 2].abs().max() > 0, "the new unit is read again"


def test_first_updates_after_a_late_reset_are_bounded_as_documented():
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    adam = torch.optim.Adam([p], lr=1e-3)
    for _ in range(20_000):
        p.grad = torch.ones_like(p)
        adam.step()
    forget(adam, p, torch.tensor([True, False]))
    ratios = []
    for _ in range(30):
        old = p.detach().clone()
        adam.step()
        ratios.append(((old - p.detach()) / 1e-3).tolist())
    new, kept = [r[0] for r in ratios], [r[1] for r in ratios]
    assert new[0] == pytest.approx(0.1 / 0.001**0.5, rel=1e-3)
    assert max(new) == pytest.approx(6.57, abs=0.01)
    assert new.index(max(new)) == 11
    assert kept == pytest.approx([1.0] * 30, rel=1e-6)


def test_rprop_moves_the_new_entries():
    """With a step size of 0, as all states were once set to, they would never move again."""
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Rprop([p], lr=0.03)
    p.grad = torch.ones(2)
    optimizer.step()
    forget(optimizer, p, torch.tensor([True, False]))
    before = p.detach().clone()
    optimizer.step()
    assert float(before[0] - p[0].detach()) == pytest.approx(0.03)


def test_the_average_of_asgd_begins_at_the_new_weight():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.ASGD([p], lr=0.1, t0=0)
    p.grad = torch.ones(2)
    for _ in range(3):
        optimizer.step()
    old = optimizer.state[p]["ax"].clone()
    with torch.no_grad():
        p[0] = 7.0
    assert forget(optimizer, p, torch.tensor([True, False])) == ("ax",)
    assert optimizer.state[p]["ax"].tolist() == [7.0, old[1]]


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2, 5)])
def test_adafactor_forgets_whole_rows_and_columns(shape):
    p = nn.Parameter(torch.ones(shape))
    optimizer = torch.optim.Adafactor([p])
    p.grad = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    before = {name: value.clone() for name, value in optimizer.state[p].items() if name.endswith("_var")}
    entries = torch.zeros(shape, dtype=torch.bool)
    entries[1] = True
    assert set(forget(optimizer, p, entries)) == {"row_var", "col_var"}
    for name, old in before.items():
        new = optimizer.state[p][name]
        expected = old.clone()
        if len(shape) == 4 or name == "row_var":  # of a matrix no column is new as a whole
            expected[1] = 0
        assert torch.equal(new, expected), name


def test_lbfgs_begins_anew_and_goes_on():
    torch.manual_seed(0)
    model = plain(4, 6, 2).double()
    optimizer = torch.optim.LBFGS(model.parameters())
    x = torch.randn(32, 4, dtype=torch.float64)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    model[0].bias.data[2] = DEAD
    assert UnitReset(model, optimizer, Dead(patience=1), every=1, maturity=0).step(x)
    assert not optimizer.state
    first = closure().item()
    optimizer.step(closure)
    assert closure().item() < first


class Sketch(torch.optim.SGD):
    """Keeps one number for each row."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["rows"] = torch.ones(len(p), 1)


def test_state_of_another_shape_is_warned_of():
    p = nn.Parameter(torch.ones(2, 3))
    optimizer = Sketch([p])
    optimizer.step()
    with pytest.warns(UserWarning, match=r"leaves 'rows' of Sketch as it is.*\. Expected .*\. Take"):
        assert forget(optimizer, p, torch.ones(2, 3, dtype=torch.bool)) == ()


def test_a_parameter_the_optimizer_does_not_hold():
    p, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([p])
    assert forget(optimizer, other, torch.tensor([True, False])) == ()
    assert len(optimizer.state) == 0, "looking does not make an entry"


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="none of the model's parameters"):
        UnitReset(plain(2, 2, 2), torch.optim.Adam(plain(2, 2, 2).parameters()))
