"""Which units can be reset; all others are named with the reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reset_nets import ResidualMLP, ResNetLike, TransformerBlock, plain
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from unvanish.torch.reset import Dead, UnitReset


def report(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return UnitReset(model, optimizer, Dead(patience=1), maturity=0).check(x, dry_run=True)


def whys(found):
    return {layer.layer: layer.why for layer in found.not_resettable}


def test_residual_only_the_inner_layer():
    found = report(ResidualMLP(), torch.randn(8, 4))
    assert found.checked == ("inner",)
    assert set(whys(found)) == {"stem", "outer", "head"}
    assert "`add` joins them" in whys(found)["outer"]
    assert whys(found)["head"] == "they are an output of the model"
    assert "inner" not in str(found).split("not resettable")[1].replace("of inner reads", "")


def test_resnet_only_the_first_convolution_of_each_block():
    found = report(ResNetLike(), torch.randn(4, 2, 6, 6))
    assert found.checked == ("blocks.0.conv1", "blocks.1.conv1")
    assert set(whys(found)) == {"stem", "blocks.0.conv2", "blocks.1.conv2", "head"}


def test_transformer_block():
    found = report(TransformerBlock(), torch.randn(4, 5, 8))
    assert found.checked == ("fc1",)
    assert {"attention.in_proj_weight", "attention.out_proj", "fc2"} == set(whys(found))


def test_gpt2_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=8, activation_function="relu", use_cache=False
    )
    model = transformers.GPT2LMHeadModel(config)
    found = report(model, torch.randint(11, (2, 5)))
    assert found.checked == ("transformer.h.0.mlp.c_fc",), "its Conv1D is an addmm"
    assert "transformer.wte" in whys(found)


def test_frozen_and_computed_weights():
    net = plain(4, 5, 6, 7, 2)
    net[2].weight.requires_grad_(False)
    found = report(net, torch.randn(8, 4))
    assert found.checked == ("4",)
    assert "2.weight is frozen" in whys(found)["0"]
    assert "2.weight is frozen" in whys(found)["2"]
    net = plain(4, 5, 6, 2)
    weight_norm(net[2])
    found = report(net, torch.randn(8, 4))
    assert found.checked == ()
    assert "2.parametrizations.weight.original1" in whys(found)


class Hidden(torch.autograd.Function):
    """It leaves PyTorch: no ``TorchFunctionMode`` sees that."""

    @staticmethod
    def forward(ctx, h):
        return torch.from_numpy(h.numpy() * 2)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class HiddenLayer(nn.Module):
    def forward(self, h):
        return Hidden.apply(h)


def test_what_a_custom_function_reads_is_left_alone():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), HiddenLayer(), nn.Linear(6, 2))
    found = report(net, torch.randn(8, 4))
    assert found.checked == ()
    assert "`HiddenLayer` does with them what is not known" in whys(found)["0"]


def test_what_is_frozen_later_is_left_alone():
    net = plain(4, 5, 6, 2)
    reset = UnitReset(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert reset.check(torch.randn(8, 4)).checked == ("0", "2")
    net[0].requires_grad_(False)
    assert reset.check(torch.randn(8, 4)).checked == ("2",)


class Odd(nn.Module):
    """Ways in which units get lost; ``way`` picks one."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.c, self.way = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(3, 2), way
        self.rnn = nn.GRU(6, 2, batch_first=True)
        self.shift = nn.Parameter(torch.ones(6))

    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.way == "returned":
            return self.b(h), h
        if self.way in ("softmax", "shifted"):
            return self.b(torch.softmax(self.a(x), 0) if self.way == "softmax" else torch.relu(self.a(x) + self.shift))
        if self.way == "gate":
            return self.b(h * torch.sigmoid(self.a(x)))
        if self.way == "heads":
            return self.c(h.view(-1, 2, 3))
        if self.way == "pooled":
            return self.c(h.view(-1, 3, 2).mean(dim=2))
        if self.way == "mean":
            return self.c(h.mean(dim=-1, keepdim=True).expand(-1, 3))
        if self.way == "chunk":
            return self.c(torch.relu(self.a(x)).chunk(2, dim=-1)[0])
        if self.way == "before":
            return self.b(self.a(x)) + self.b(h)
        if self.way in ("twice", "unknown"):
            return self.b(torch.tanh(F.dropout(h, 0.1)) if self.way == "twice" else torch.cummax(h, dim=0)[0])
        if self.way == "rnn":
            return self.rnn(h.unsqueeze(1))[0]
        if self.way == "argmax":
            return self.b(h) * h.argsort(dim=-1)[:, :2]
        return self.b(h)


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("returned", "output of the model"),
        ("softmax", "each depend on all others"),
        ("gate", "joins them"),
        ("heads", "reads several of them by one weight"),
        ("pooled", "along several axes"),
        ("mean", "takes them together"),
        ("chunk", "several tensors"),
        ("before", "reads them without an activation"),
        ("shifted", "parameters of its own"),
        ("twice", "several activations"),
        ("rnn", "recurrent"),
        ("argmax", "not known"),
        ("unknown", "`cummax` does with them what is not known"),
    ],
)
def test_units_that_get_lost(way, why):
    found = report(Odd(way), torch.randn(8, 4))
    assert "a" not in found.checked
    assert why in whys(found)["a"]


def test_every_weight_is_either_checked_or_named():
    for model, x in (
        (Odd("fine"), torch.randn(8, 4)),
        (ResNetLike(), torch.randn(4, 2, 6, 6)),
        (TransformerBlock(), torch.randn(4, 5, 8)),
    ):
        found = report(model, x)
        named = set(found.checked) | set(whys(found))
        weights = {name.removesuffix(".weight") for name, p in model.named_parameters() if p.ndim >= 2}
        assert named == weights
        assert not set(found.checked) & set(whys(found))
    assert whys(report(Odd("fine"), torch.randn(8, 4)))["c"] == "this batch did not reach it"


class Sequence(nn.Module):
    """Last step of a sequence, zero padding, several readers, keyword inputs."""

    def __init__(self):
        super().__init__()
        self.up, self.left, self.right = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(8, 2)

    def forward(self, *, x, scale=1.0):
        h = F.elu(self.up(x) * scale)
        return self.left(h[:, -1]) + self.right(F.pad(h, (1, 1)).mean(dim=1))


def test_several_readers_padding_and_keyword_inputs():
    torch.manual_seed(0)
    model = Sequence().double()
    model.up.bias.data[2] = -1e3  # ELU: constant -1, which both readers take over
    x = torch.randn(8, 5, 4, dtype=torch.float64)
    before = model(x=x)
    reset = UnitReset(model, torch.optim.SGD(model.parameters(), lr=1), Dead(patience=1), every=1, maturity=0)
    (event,) = reset.step({"x": x})
    assert event.units == (2,)
    torch.testing.assert_close(model(x=x), before, rtol=1e-12, atol=1e-13)
    assert (model.left.weight == 0).all(dim=0).nonzero().flatten().tolist() == [2]
    assert (model.right.weight == 0).all(dim=0).nonzero().flatten().tolist() == [3], "one column of padding before it"
