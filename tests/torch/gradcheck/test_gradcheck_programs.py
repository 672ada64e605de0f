"""Whole programs: real models are right, nothing of the user's changes, what cannot be checked is said."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from wrong_functions import ScaledSigmoid, modular

from unvanish.torch.gradcheck import GradientCheck, gradcheck, gradcheck_function

Program = tuple[nn.Module, Callable[..., Any] | None, Any]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(h)) + x)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(30, 8, padding_idx=0), nn.LSTM(8, 6, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.words(ids), lengths, batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(out).transpose(1, 2)


def resnet() -> Program:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), Residual(8), Residual(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 5),
    )  # fmt: skip
    return model, nn.CrossEntropyLoss(), (torch.randn(6, 3, 12, 12), torch.randint(5, (6,)))


def encoder() -> Program:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    mask = torch.full((7, 7), -torch.inf).triu(1)
    batch = ({"src": torch.randn(3, 7, 16), "mask": mask, "is_causal": True}, torch.randn(3, 7, 16))
    return model, F.mse_loss, batch


def tagger() -> Program:
    batch = (torch.randint(30, (3, 6)), torch.tensor([6, 4, 2])), torch.randint(4, (3, 6))
    return Tagger(), F.cross_entropy, batch


def gpt2() -> Program:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    ids = torch.randint(40, (2, 9))
    return model, None, {"input_ids": ids, "labels": ids}


def llama() -> Program:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    ids = torch.randint(40, (2, 9))
    return LlamaForCausalLM(config), None, {"input_ids": ids, "labels": ids}


def parametrized() -> Program:
    from torch.nn.utils import parametrizations as p

    layers = [p.weight_norm(nn.Linear(6, 6)), p.spectral_norm(nn.Linear(6, 6)), p.orthogonal(nn.Linear(6, 6))]
    return nn.Sequential(*layers), F.mse_loss, (torch.randn(4, 6), torch.randn(4, 6))


class Odd(nn.Module):
    """A shared layer, an in-place activation, a checkpoint, sorting, a cast to float32, a random branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.relu(self.a(x))
        x = checkpoint(self.b, x, use_reentrant=False).float().sort(1).values
        x = x + (self.b(x) if torch.rand(()) < 0.5 and random.random() < 2 else self.a(x))
        return F.dropout(x.softmax(1, dtype=torch.float32) + x.cummax(1).values, 0.3, self.training)


def odd() -> Program:
    return Odd(), F.mse_loss, (torch.randn(5, 6), torch.randn(5, 6))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("program", [resnet, encoder, tagger, gpt2, llama, parametrized, odd])
def test_real_models_are_right(program: Callable[[], Program], training: bool) -> None:
    torch.manual_seed(0)
    model, loss_fn, batch = program()
    check = gradcheck(model.train(training), loss_fn, batch)
    assert check.ok, check
    assert [one for one in check.skipped if not one.trivial] == [], check
    assert check.loss is not None
    assert check.loss.ok, check
    assert len(check.modules) > 2
    assert max(module.relative_error for module in check.modules) < 1e-6


def test_a_wrong_activation_inside_gpt2_is_named() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * ScaledSigmoid.apply(x, 1.01)

    torch.manual_seed(0)
    model, _, batch = gpt2()
    model.transformer.h[1].mlp.act = Wrong()
    check = gradcheck(model, batch=batch)
    assert [(f.module, f.kind) for f in check.failures] == [("transformer.h.1.mlp.act", "ScaledSigmoid")]


@pytest.mark.parametrize("broken", [False, True])
def test_everything_is_bit_identical_afterwards(broken: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*resnet()[0][:-1], nn.utils.parametrizations.spectral_norm(nn.Linear(8, 5)))
    model.append(nn.Sequential(nn.Linear(5, 5), *modular(1, 5, wrong=0 if broken else None)[1:]))
    model[0].weight.requires_grad_(False)
    batch = torch.randn(6, 3, 12, 12), torch.randint(5, (6,))
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    forward = vars(ScaledSigmoid)["forward"]

    def state() -> Any:
        return copy.deepcopy(
            {
                "weights": dict(model.state_dict()),
                "grads": {name: p.grad for name, p in model.named_parameters()},
                "attributes": {name: sorted(vars(m)) for name, m in model.named_modules()},
                "modes": [m.training for m in model.modules()],
                "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
                "batch": batch,
                "dtype": torch.get_default_dtype(),
            }
        )

    before = state()
    check = gradcheck(model, nn.CrossEntropyLoss(), batch)
    assert check.ok is not broken
    assert _same(before, state())
    assert vars(ScaledSigmoid)["forward"] is forward


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


SMOOTH = [torch.tanh, torch.sigmoid, F.softplus, F.gelu, F.silu, torch.sin, torch.exp, torch.square, torch.erf]
KINKED = [F.relu, F.hardshrink, F.hardtanh, F.leaky_relu, torch.abs, F.relu6, F.hardswish, torch.round, torch.sign]


@settings(max_examples=60, deadline=None)
@given(
    function=st.sampled_from([*SMOOTH, *KINKED]),
    scale=st.floats(-6, 2).map(lambda power: 10.0**power),
    shift=st.sampled_from([0.0, 0.5, 1.0, -1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_a_right_function_is_never_called_wrong(
    function: Callable[[Tensor], Tensor], scale: float, shift: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 40, generator=generator, dtype=torch.float64) * scale + shift
    x[0, :10] = 0.0
    assert gradcheck_function(function, x).ok


@settings(max_examples=40, deadline=None)
@given(
    function=st.sampled_from([torch.tanh, F.relu, F.hardtanh, F.leaky_relu]),
    factor=st.floats(-1e3, 1e3).filter(lambda f: abs(f - 1) > 1e-3),
    power=st.floats(-5, 0.3),
    seed=st.integers(0, 2**31),
)
def test_a_wrong_factor_is_always_found(
    function: Callable[[Tensor], Tensor], factor: float, power: float, seed: int
) -> None:
    def wrong(x: Tensor) -> Tensor:
        y = function(x)
        y.register_hook(lambda grad: grad * factor)
        return y

    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10.0**power
    check = gradcheck_function(wrong, x)
    assert not check.ok
    assert check.failures[0].analytic == pytest.approx(factor * check.failures[0].numeric, rel=1e-5)


def test_what_is_random_or_not_smooth_is_told() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(x.shape, generator=self.generator)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Restless(), nn.Linear(4, 4))
    check = gradcheck(model, F.mse_loss, (torch.randn(3, 4), torch.randn(3, 4)))
    assert check.ok
    assert any(one.module == "1" and "at each call" in one.reason for one in check.skipped), check
    assert "not checked: 1 (Restless)" in str(check)


def test_buffers_are_put_back_between_evaluations() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    torch.manual_seed(0)
    check = gradcheck(nn.Sequential(nn.Linear(4, 4), Counting()), F.mse_loss, (torch.randn(3, 4), torch.randn(3, 4)))
    assert check.ok, check
    assert "1" in {module.module for module in check.modules}


class RoundedTanh(torch.autograd.Function):
    """Right, but computed in float32 by NumPy: its differences are noise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.from_numpy(np.tanh(x.numpy().astype(np.float32)).astype(np.float64)).to(x.dtype)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (1 - ctx.saved_tensors[0] ** 2)


@pytest.mark.parametrize("seed", range(12))
def test_rounding_noise_is_no_failure(seed: int) -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed))
    check = gradcheck_function(lambda x: RoundedTanh.apply(x).sum(1, keepdim=True) / 2, x)
    assert check.failures == (), check
    assert check.ok == check.checked  # right is said only where the noise leaves something to compare


def test_a_module_that_cannot_run_in_float64_is_told() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return x * 2

    check = gradcheck(nn.Sequential(nn.Linear(4, 4), Single()), F.mse_loss, (torch.randn(3, 4), torch.randn(3, 4)))
    assert check.ok
    assert any(one.module == "1" and "float32 only" in one.reason for one in check.skipped), check
    assert check.loss is None


def test_unused_weights_and_conventions_are_told() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4, scale_grad_by_freq=True)
            self.head, self.unused = nn.Linear(4, 2), nn.Linear(3, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.words(ids))

    check = gradcheck(Net(), lambda y, _: y.square().sum(), (torch.randint(3, (4, 5)), torch.zeros(1)))
    assert check.ok
    reasons = {one.module: one.reason for one in check.skipped if not one.trivial}
    assert "scale_grad_by_freq" in reasons["words"]
    assert reasons["unused"] == "not used by this batch: weight, bias"


def test_objective_lower_precision_and_own_parameters_of_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).bfloat16()
    x, y = torch.randn(3, 4).bfloat16(), torch.randn(3, 1)

    def objective(net: nn.Module, batch: Any) -> Tensor:
        hidden = net[1](net[0](batch["x"]))
        decay = sum(p.float().square().sum() for p in net.parameters())
        return F.mse_loss(net[2](hidden).float(), batch["y"]) + 0.1 * decay

    check = gradcheck(model, objective=objective, batch={"x": x, "y": y})
    assert check.ok, check
    assert {module.module for module in check.modules} == {"0", "1", "2", "loss"}


def small() -> nn.Module:
    return nn.Linear(4, 2)


PAIR = torch.randn(3, 4), torch.randn(3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradcheck(torch.tanh, F.mse_loss, PAIR), "expects a torch.nn.Module"),
        (lambda: gradcheck(small(), F.mse_loss), "without a batch"),
        (lambda: gradcheck(small(), F.mse_loss, PAIR[0]), "must be a pair"),
        (lambda: gradcheck(small(), lambda y, t: y - t, PAIR), "needs a scalar"),
        (lambda: gradcheck(small(), lambda y, t: (y - t).sum().item(), PAIR), "not a tensor"),
        (lambda: gradcheck(small(), lambda y, t: (y - t).sum().detach(), PAIR), "does not depend on any parameter"),
        (lambda: gradcheck(small(), nn.MSELoss, PAIR), "with the brackets"),
        (lambda: gradcheck(small().requires_grad_(False), F.mse_loss, PAIR), "No parameter of the model"),
        (lambda: gradcheck(nn.Linear(4, 2, device="meta"), F.mse_loss, PAIR), "meta device"),
        (lambda: gradcheck(small(), F.mse_loss, PAIR, objective=lambda m, b: m(b[0]).sum()), "Both loss_fn"),
        (lambda: gradcheck_function(small(), PAIR[0]), "gradcheck(model, loss_fn, batch)"),
        (lambda: gradcheck_function(ScaledSigmoid, PAIR[0]), "pass its .apply"),
        (lambda: gradcheck_function(torch.tanh, torch.arange(3)), "No input of tanh"),
    ],
)
def test_what_cannot_be_checked_is_refused(call: Callable[[], GradientCheck], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)").replace(".", r"\.")):
        call()


def test_agrees_with_pytorch_s_own_check_on_small_modules() -> None:
    torch.manual_seed(0)
    for module in (nn.Linear(4, 3), nn.LayerNorm(4), nn.Softplus(), nn.RNNCell(4, 3)):
        x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(module.double(), x)
        assert gradcheck_function(lambda x, module=module: module(x), x).ok
