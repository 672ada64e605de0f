"""State survives what people do to it: saving, copying, pickling, loading, and groups edited between steps."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from unvanish.torch.rmsprop import RMSprop

SETTINGS = [{}, {"momentum": 0.9, "centered": True}, {"bias_correction": True, "clip": 0.5}]


def model_and(way, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).to(dtype)
    return model, RMSprop(model.parameters(), lr=0.01, **settings, **way)


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        with torch.no_grad():
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def leaves(way):
    return way if "differentiable" not in way else {}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("weights_only", [True, False])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(way, settings, weights_only):
    way = leaves(way)
    model, optimizer = model_and(way, **settings)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    straight_on = train(model, optimizer, 3, seed=1)
    other, fresh = model_and(way, **settings)
    file.seek(0)
    weights, state = torch.load(file, weights_only=weights_only)
    other.load_state_dict(weights)
    fresh.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(train(other, fresh, 3, seed=1), straight_on, strict=True))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_is_equal_and_apart(settings, copied):
    model, optimizer = model_and({}, **settings)
    train(model, optimizer, 3)
    other, second = copied((model, optimizer))
    before = train(other, second, 3, seed=1)
    after = train(model, optimizer, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_loading_shares_no_memory():
    model, optimizer = model_and({})
    train(model, optimizer, 1)
    other, fresh = model_and({})
    fresh.load_state_dict(optimizer.state_dict())
    kept = {p: optimizer.state[p]["square_avg"].clone() for p in model.parameters()}
    train(other, fresh, 3)
    assert all(torch.equal(optimizer.state[p]["square_avg"], v) for p, v in kept.items())


def test_half_precision_keeps_its_wide_state_when_loaded():
    """PyTorch casts a loaded state to the parameter's type, in which small averages are 0."""
    model, optimizer = model_and({}, dtype=torch.float16)
    train(model, optimizer, 2)
    other, fresh = model_and({}, dtype=torch.float16)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert fresh.state[q]["square_avg"].dtype == torch.float32
        assert torch.equal(fresh.state[q]["square_avg"], optimizer.state[p]["square_avg"])


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}])
def test_goes_on_from_a_state_of_torch(settings):
    model, _ = model_and({}, dtype=torch.float64)
    theirs = torch.optim.RMSprop(model.parameters(), lr=0.02, alpha=0.95, **settings)
    train(model, theirs, 3)
    other, ours = model_and({}, dtype=torch.float64)
    other.load_state_dict(model.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for a, b in zip(train(model, theirs, 3, seed=1), train(other, ours, 3, seed=1), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["momentum", "centered", "bias_correction", "weight_decay", "clip", "nesterov"])
def test_settings_turned_on_and_off_in_the_middle(way, name):
    """torch.optim.RMSprop ends in KeyError for the first two."""
    model, optimizer = model_and(leaves(way))
    train(model, optimizer, 2)
    off = optimizer.param_groups[0][name]
    on = {"momentum": 0.9, "weight_decay": 0.1, "clip": 1.0}.get(name, True)
    optimizer.param_groups[0].update({name: on, **({"momentum": 0.5} if name == "nesterov" else {})})
    assert all(p.isfinite().all() for p in train(model, optimizer, 2))
    optimizer.param_groups[0].update({name: off, "momentum": 0.0})
    assert all(p.isfinite().all() for p in train(model, optimizer, 2))


def test_torch_cannot_turn_on_momentum():
    """The case is real."""
    model, _ = model_and({})
    optimizer = torch.optim.RMSprop(model.parameters())
    train(model, optimizer, 1)
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(KeyError):
        train(model, optimizer, 1)


def test_bias_correction_turned_on_later_knows_the_number_of_steps():
    model, optimizer = model_and({})
    train(model, optimizer, 5)
    other, always = model_and({}, bias_correction=True)
    train(other, always, 5)
    assert [always.state[p]["step"] for p in other.parameters()] == [5] * 4
    assert [optimizer.state[p]["step"] for p in model.parameters()] == [5] * 4


def test_a_group_added_later_and_its_own_settings():
    model, optimizer = model_and({})
    train(model, optimizer, 1)
    late = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late], "lr": 0.5, "eps_inside": False, "rho": 0.0, "eps": 1e-8})
    late.grad = torch.tensor([3.0, -2.0])
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.1),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10, cycle_momentum=True),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.0 if epoch == 0 else 1.0),
    ],
)
def test_schedulers(make):
    """Also one that warms up from 0, and one that cycles the momentum."""
    model, ours = model_and({}, momentum=0.9, lr_in_momentum=False)
    other, _ = model_and({})
    theirs = torch.optim.RMSprop(other.parameters(), lr=0.01, alpha=0.9, eps=1e-7, momentum=0.9)
    ours.param_groups[0]["eps_inside"] = False
    mine, their = make(ours), make(theirs)
    for seed in range(4):
        a, b = train(model, ours, 1, seed), train(other, theirs, 1, seed)
        mine.step()
        their.step()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_parameters_without_gradient_are_left_alone(way):
    model, optimizer = model_and(leaves(way), weight_decay=0.1)
    optimizer.zero_grad()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state
    model[0].weight.grad = torch.ones(4, 3)
    with torch.no_grad():
        optimizer.step()
    assert list(optimizer.state) == [model[0].weight]


def test_the_closure_is_called_once_with_gradients_enabled():
    w = torch.ones(1, requires_grad=True)
    optimizer = RMSprop([w])
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) == 1.0
    assert calls == [True]


def test_gradient_scaling_of_mixed_precision():
    w = torch.ones(2, requires_grad=True)
    optimizer = RMSprop([w], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(w.square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == pytest.approx([1 - 0.1 * 2 / (0.1 * 4 + 1e-7) ** 0.5] * 2)


@pytest.mark.parametrize(
    "state",
    [
        *(None, "a", 3, [], {}, {"state": {}}, {"param_groups": []}, {"state": None, "param_groups": []}),
        *({"state": {}, "param_groups": None}, {"state": {}, "param_groups": [{}]}, {"state": {}, "param_groups": [3]}),
        {"state": {0: None}, "param_groups": [{"params": [0]}]},
        torch.nn.Linear(2, 2).state_dict(),  # of a model
    ],
    ids=lambda state: "a model" if hasattr(state, "_metadata") else repr(state),
)
def test_what_is_no_state_of_an_optimizer_is_refused_and_changes_nothing(state):
    model, optimizer = model_and({})
    train(model, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"RMSprop was given .* as its state\. Expected .* To mend it: "):
        optimizer.load_state_dict(state)
    assert repr(optimizer.state_dict()) == repr(before)
