"""New norms and an optimizer that exists: groups, names and states; runs that go on; failures leave no trace."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from unvanish.torch.normalize import insert_normalization_
from unvanish.torch.rmsprop import RMSprop

OPTIMIZERS = [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, RMSprop]
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(3))


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 2))


def train(model, optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("outer", ["", "net."])
def test_names_and_parameters_keep_step(make, outer):
    model = net()
    optimizer = make([(outer + name, p) for name, p in model.named_parameters()], lr=0.01)
    train(model, optimizer)
    report = insert_normalization_(model, "layer", X, optimizer=optimizer)
    (group,) = optimizer.param_groups
    expected = [(outer + name, p) for name, p in model.named_parameters()]
    assert group["param_names"] == [name for name, _ in expected]
    assert all(held is p for held, (_, p) in zip(group["params"], expected, strict=True))
    train(model, optimizer)
    make([(outer + name, p) for name, p in model.named_parameters()], lr=0.01).load_state_dict(optimizer.state_dict())
    report.remove()
    assert group["param_names"] == [outer + name for name, _ in model.named_parameters()]


def test_a_bad_gradient_of_a_norm_is_named():
    model = net()
    optimizer = RMSprop(model.named_parameters(), lr=0.1)
    insert_normalization_(model, "batch", X, optimizer=optimizer)
    model(X).sum().backward()
    model[0].norm.weight.grad[0] = torch.nan
    with pytest.warns(UserWarning, match=r"0\.norm\.weight"):
        optimizer.step()


def one_group(model):
    return model.parameters()


def by_axes(model):
    """As is usual: matrices decay, all else does not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": [p for p in model.parameters() if p.ndim == 1]}]


def by_layer(model):
    return [{"params": list(layer.parameters())} for layer in model if list(layer.parameters())]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("grouped", [one_group, by_axes, by_layer])
@pytest.mark.parametrize("inserted_first", [False, True])
def test_a_run_goes_on_whether_the_optimizer_is_made_before_or_after(make, grouped, inserted_first):
    """Without the right order most optimizers load the state of another parameter without a word."""
    model = net()
    model[2].bias = nn.Parameter(torch.zeros(4))
    optimizer = make(grouped(model), lr=0.01)
    insert_normalization_(model, "batch", X, optimizer=optimizer)
    train(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer)

    again = net(1)
    again[2].bias = nn.Parameter(torch.zeros(4))
    if inserted_first:
        insert_normalization_(again, "batch", X)
        resumed = make(grouped(again), lr=0.01)
    else:
        resumed = make(grouped(again), lr=0.01)
        insert_normalization_(again, "batch", X, optimizer=resumed)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(again, resumed)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_norm_joins_the_group_of_its_layers_bias():
    model = net()
    optimizer = torch.optim.SGD(by_axes(model), lr=0.1)
    report = insert_normalization_(model, "layer", X, optimizer=optimizer)
    assert [new.group for new in report.inserted] == [1, 0], "layer 2 has no bias: its norm goes with the weight"


def test_wrapped_norms_and_parametrised_layers_join_too():
    first = weight_norm(nn.Linear(4, 4, bias=False))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    insert_normalization_(model, "batch", X.reshape(8, 2, 4), optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    assert "2.norm.norm.weight" in optimizer.param_groups[0]["param_names"]


class Named(nn.Linear):
    """A layer of a user's who has a use for the name."""

    norm = 2.0


def test_a_layer_that_uses_the_name_is_left_out_before_anything_changes():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Named(4, 4), nn.ReLU(), nn.Linear(4, 2))
    report = insert_normalization_(model, "layer", X)
    assert next((old.layer, old.reason) for old in report.left_out) == ("2", "has something else called `norm`")


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"optimizer": "adam"}, "optimizer is a str"),
        ({"optimizer": torch.optim.Adam}, "optimizer is a type"),
        ({"inputs": torch.ones(0, 4)}, "no samples"),
        ({"inputs": torch.ones(0, 4), "kind": "batch"}, "no samples"),
        ({"model": None}, "model is a NoneType"),
    ],
)
def test_bad_input_changes_nothing(wrong, match):
    model = net()
    settings = {"model": model, "kind": "layer", "inputs": X, **wrong}
    with pytest.raises(ValueError, match=rf"{match}.*\. Expected .*\. .+"):
        insert_normalization_(**settings)
    assert len(list(model.modules())) == 6
    assert not any(layer._forward_hooks for layer in model)


def test_a_warning_that_is_an_error_changes_nothing():
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="does not train 2"):
            insert_normalization_(model, "layer", X, optimizer=optimizer)
    assert len(list(model.modules())) == 6
    assert len(optimizer.param_groups[0]["params"]) == 2
