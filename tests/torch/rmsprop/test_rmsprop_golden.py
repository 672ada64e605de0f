"""The presets are the libraries' RMSprops: tight numbers, and proof that these would notice a wrong formula."""

from __future__ import annotations

import pytest
import torch
from rmsprop_golden import GOLDEN, SCALES, STEPS

from unvanish.torch.rmsprop import RMSprop


def trajectory(library, **settings):
    w = torch.ones(len(SCALES), dtype=torch.float64)
    optimizer = RMSprop.like(library, [w], **settings)
    rows = []
    for factor in STEPS:
        w.grad = factor * torch.tensor(SCALES, dtype=torch.float64)
        optimizer.step()
        rows.append(w.tolist())
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("name", GOLDEN)
def test_presets_equal_the_library(name, way):
    library, settings, expected = GOLDEN[name]
    torch.testing.assert_close(
        trajectory(library, **settings, **way), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-15
    )


MUTANTS = {
    "eps 1e-8 for 1e-7": ("keras", {"eps": 1e-8}),
    "no eps": ("keras", {"eps": 1e-300}),
    "eps 1e-6": ("keras", {"eps": 1e-6}),
    "eps outside": ("keras", {"eps_inside": False}),
    "eps outside 1e-4": ("keras", {"eps_inside": False, "eps": 1e-4}),
    "rho .95": ("keras", {"rho": 0.95}),
    "v starts at 1e-3": ("keras", {"initial_accumulator": 1e-3}),
    "bias correction": ("keras", {"bias_correction": True}),
    "centred": ("keras", {"centered": True}),
    "maximize": ("keras", {"maximize": True}),
    "decay coupled": ("keras", {"weight_decay": 0.1, "decoupled_weight_decay": False}),
    "nesterov": ("keras", {"momentum": 0.9, "nesterov": True}),
    "eps inside": ("torch", {"eps_inside": True}),
    "decay decoupled": ("torch", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "v starts at 0": ("timm", {"initial_accumulator": 0.0}),
    "optax eps of keras": ("optax", {"eps": 1e-7}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_golden_numbers_notice(mutant):
    """Keras' own golden test, to 5e-4, lets five of six such mutants of eps pass."""
    library, settings = MUTANTS[mutant]
    right = {name: value for name, value in settings.items() if name in ("momentum", "weight_decay")}
    expected = next(rows for kept, given, rows in GOLDEN.values() if (kept, given) == (library, right))
    difference = trajectory(library, **settings) - torch.tensor(expected, dtype=torch.float64)
    assert difference.abs().max() > 1e-9


def test_golden_numbers_notice_a_mean_updated_after_its_use(monkeypatch):
    from unvanish.torch.rmsprop import eager, formula

    right = formula._denominator

    def late(values, g, s, correction, room):
        before = values.m.clone()
        right(values, g, s, correction, None)
        return (values.v - before * before + s.eps).sqrt()

    monkeypatch.setattr(formula, "_denominator", late)
    assert eager.advance_ is formula.advance_
    expected = torch.tensor(GOLDEN["keras centered=True"][2], dtype=torch.float64)
    assert (trajectory("keras", centered=True, foreach=False) - expected).abs().max() > 1e-9


def test_our_defaults_are_keras():
    w = torch.ones(1, requires_grad=True)
    assert RMSprop([w]).defaults == RMSprop.like("keras", [w]).defaults


def test_learning_rate_in_the_buffer_matters_when_it_changes():
    """lr 1 -> 0.1 at step 2, mu 0.9, g = 1, rho 0.9 and no eps to speak of."""
    ends = {}
    for library in ("keras", "torch"):
        w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        o = RMSprop.like(library, [w], lr=1.0, rho=0.9, eps=1e-12, momentum=0.9)
        for lr in (1.0, 0.1, 0.1):
            o.param_groups[0]["lr"] = lr
            w.grad = torch.ones_like(w)
            o.step()
        ends[library] = w.item()
    assert ends["keras"] == pytest.approx(-9.20, abs=0.01)
    assert ends["torch"] == pytest.approx(-4.33, abs=0.01)
