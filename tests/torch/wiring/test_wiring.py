"""The wiring against torch.fx, an independent tracer, and against networks whose wiring is plain to see."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from transformers import GPT2Config, GPT2LMHeadModel

from unvanish.torch.wiring import trace


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(x + self.norm2(self.conv2(h)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.blocks(torch.tanh(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


class Functional(nn.Module):
    """Weights as bare parameters, a layer used twice, arithmetic with numbers."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))
        self.shared = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        h = torch.sigmoid(x @ self.w)
        h = self.shared(h) * self.scale
        h = self.shared(F.gelu(h)) + 0.5 * x
        return torch.cat([h, x], dim=1)


def fx_edges(model):
    """For each tensor op of an fx graph, in order: (target, the positions of the ops it reads)."""
    graph = fx.symbolic_trace(model, concrete_args=None)
    order, edges = {}, []
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        sources = [order.get(arg, -1) for arg in node.all_input_nodes if arg.op != "get_attr"]
        name = (
            type(modules[node.target]).__name__
            if node.op == "call_module"
            else str(getattr(node.target, "__name__", node.target))
        )
        order[node] = len(edges)
        edges.append((name.lower().replace("_", ""), tuple(sources)))
    return edges


@pytest.mark.parametrize(("model", "x"), [(ResNet(), torch.randn(2, 1, 8, 8)), (Functional(), torch.randn(2, 6))])
def test_the_same_edges_as_torch_fx(model, x):
    expected = fx_edges(model)
    ops = trace(model, x).ops
    assert [tuple(dict.fromkeys(op.inputs)) for op in ops] == [tuple(dict.fromkeys(sources)) for _, sources in expected]
    for op, (name, _) in zip(ops, expected, strict=True):
        own = op.name.replace("_", "")
        assert name.startswith(own) or own.startswith(name.rstrip("12")) or own in name, (op.name, name)


def test_parameters_by_role_and_modules_by_path():
    wiring = trace(ResNet(), torch.randn(2, 1, 8, 8))
    stem = wiring.ops[0]
    assert (stem.kind, stem.module) == ("convolution", "stem")
    assert stem.parameter("weight") == "stem.weight"
    assert stem.parameter("bias") == "stem.bias"
    assert [op.module for op in wiring.layers()] == [
        "stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "head",
    ]  # fmt: skip
    conv1, conv2 = wiring.layers()[1:3]
    assert wiring.activation_after(conv1.index).name == "relu"
    assert wiring.activation_after(conv2.index) is None  # a residual sum comes first
    assert conv1.parameter("bias") is None


def test_products_with_a_parameter_are_layers_and_products_of_data_are_not():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            scores = (x @ self.q) @ x.transpose(1, 2)
            return scores.softmax(-1) @ x

    ops = trace(Attention(), torch.randn(2, 3, 4)).ops
    assert [op.kind for op in ops] == ["linear", "view", "attention", "softmax", "attention"]
    assert ops[0].parameters == (("other", "q"),)


def test_a_parametrised_weight_is_computed_not_a_parameter():
    net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    (op,) = trace(net, torch.randn(2, 4)).ops
    assert op.parameters == (("bias", "bias"),)
    ((role, below),) = op.computed
    assert role == "weight"
    assert set(below) == {"parametrizations.weight.original0", "parametrizations.weight.original1"}


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_layers_padded_and_packed(kind, packed):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = kind(3, 5, num_layers=2, batch_first=True)

        def forward(self, x):
            if packed:
                x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2]), batch_first=True)
            return self.rnn(x)[0]

    (op,) = (op for op in trace(Net(), torch.randn(2, 4, 3)).ops if op.kind == "recurrent")
    assert op.parameter("weight_hh_l1") == "rnn.weight_hh_l1"
    assert op.arguments["num_layers"] == 2
    assert op.arguments["bidirectional"] is False


def test_a_custom_function_and_a_scripted_module_do_not_cut_the_wiring():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.from_numpy(x.detach().numpy() ** 3)

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Cubed(nn.Module):
        def forward(self, x):
            return Cube.apply(x)

    net = nn.Sequential(nn.Linear(4, 4), Cubed(), nn.Linear(4, 2))
    ops = trace(net, torch.randn(3, 4)).ops
    by_module = {op.module: op for op in ops}
    assert by_module["1"].inputs == (by_module["0"].index,)
    assert by_module["2"].inputs == (by_module["1"].index,)


def test_an_activation_can_be_applied_to_other_data():
    slopes = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.3, inplace=True), nn.Linear(2, 2), nn.PReLU(init=0.1))
    wiring = trace(slopes, torch.randn(3, 2))
    leaky, prelu = (op for op in wiring.ops if op.kind == "activation")
    x = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    assert torch.equal(leaky.apply(x), F.leaky_relu(x, 0.3))
    assert torch.equal(x, torch.tensor([-1.0, 2.0], dtype=torch.float64))
    assert torch.equal(prelu.apply(x.float()), torch.tensor([-0.1, 2.0]))


def test_nothing_of_the_model_changes():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten())
    net.append(nn.Linear(4 * 36, 2))
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(4, 1, 8, 8)
    kept_x = x.clone()
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    trace(net, x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert torch.equal(x, kept_x)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert (np.random.get_state()[1] == random_states[1]).all()
    assert random.getstate() == random_states[2]
    assert net.training
    assert not net._forward_hooks


def test_an_error_in_the_forward_pass_leaves_no_hooks():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        trace(Broken(), torch.ones(1))
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_replaced_result_is_what_the_next_op_reads():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    x = torch.randn(6, 4)

    def double_the_first(op, args, kwargs, result):
        if op.module != "0":
            return None
        net[0].weight.mul_(2)
        net[0].bias.mul_(2)
        return 2 * result

    outputs = []
    expected = net[2](net[1](2 * net[0](x))).detach()
    wiring = trace(net, x, on_op=lambda op, *rest: outputs.append(rest[-1]) or double_the_first(op, *rest))
    torch.testing.assert_close(outputs[-1], expected)
    torch.testing.assert_close(net(x).detach(), expected)
    assert [op.inputs for op in wiring.ops] == [(-1,), (0,), (1,)]


def test_a_real_transformer_with_tied_weights():
    config = GPT2Config(vocab_size=17, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    wiring = trace(GPT2LMHeadModel(config), {"input_ids": torch.randint(0, 17, (2, 5))})
    layers = [(op.kind, op.module) for op in wiring.layers()]
    assert layers[0] == ("embedding", "transformer.wte")
    assert layers[-1] == ("linear", "lm_head")
    assert wiring.layers()[-1].parameter("weight") == "transformer.wte.weight"  # shared: its first name
    assert sum(module.endswith(("c_attn", "c_fc", "c_proj")) for _, module in layers) == 8
    for op in wiring.layers():
        if op.module.endswith("c_fc"):  # GELU written out as arithmetic: no activation op to find
            assert op.parameter("mat2") == f"{op.module}.weight"
    assert all(source < op.index for op in wiring.ops for source in op.inputs)


def test_positional_and_keyword_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = nn.Bilinear(3, 4, 2)

        def forward(self, a, b):
            return self.bilinear(a, b)

    a, b = torch.randn(5, 3), torch.randn(5, 4)
    for inputs in ((a, b), [a, b], {"a": a, "b": b}):
        (op,) = trace(Two(), inputs).ops
        assert op.inputs == (-1, -1)
        assert op.shape == (5, 2)
