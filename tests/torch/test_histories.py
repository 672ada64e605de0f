"""Numbers without a history, and turned masks: told where they are a fault, and not where people mean them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad
from torch.distributions import Independent, Normal

from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.rehearsal.tampered import lost_histories
from unvanish.torch.views.padding import only_padding
from unvanish.types import Cut

Loss = Callable[[Any, Any], Tensor]


def mlp(inputs: int = 3, outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, outputs))


def points() -> Tensor:
    return torch.linspace(-1, 1, 24).view(8, 3)


def ops(cuts: tuple[Cut, ...]) -> list[str]:
    return [cut.op for cut in cuts]


# ---- derivatives ---------------------------------------------------------------------------------------------------


def slope(net: Any, x: Tensor, *, graph: bool) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(net(x).sum(), x, create_graph=graph)[0]


def gradient_penalty(net: Any, x: Tensor) -> Tensor:
    """As in WGAN-GP, by a name imported of its own."""
    x = x.clone().requires_grad_()
    (found,) = grad(net(x).sum(), x)
    return net(x.detach()).mean() + (found.norm(dim=1) - 1).square().mean()


def forces(net: Any, x: Tensor) -> Tensor:
    """A potential fitted to energies and forces."""
    x = x.clone().requires_grad_()
    energy = net(x)
    (force,) = torch.autograd.grad(energy.sum(), x, retain_graph=True)
    return energy.square().mean() + (force - 1).square().mean()


def second_only(net: Any, x: Tensor) -> Tensor:
    """The first derivative has a graph, the second has none."""
    x = x.clone().requires_grad_()
    first = torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x, retain_graph=True)[0]
    return (first + second).square().mean()


@pytest.mark.parametrize("loss", [gradient_penalty, forces, second_only])
def test_a_derivative_in_the_loss_that_teaches_nothing(loss: Loss) -> None:
    cuts = lost_histories(mlp(), Objective(None, loss), points())
    assert ops(cuts) == ["create_graph"]
    assert cuts[0].where == "loss"


def with_graph(net: Any, x: Tensor) -> Tensor:
    return net(x).mean() + slope(net, x, graph=True).square().mean()


def fast_gradient_sign(net: Any, x: Tensor) -> Tensor:
    """Adversarial training: the derivative becomes an input."""
    return net(x + 0.1 * slope(net, x, graph=False).sign()).square().mean()


def steepest_step(net: Any, x: Tensor) -> Tensor:
    step = slope(net, x, graph=False)
    return net(x + 0.1 * step / step.norm()).square().mean()


def logged_only(net: Any, x: Tensor) -> Tensor:
    slope(net, x, graph=False)
    return net(x).square().mean()


def balanced(net: Any, x: Tensor) -> Tensor:
    """Two terms weighed by the size of their gradients at the weights."""
    one, other = net(x).square().mean(), (net(x) - 1).abs().mean()
    weights = list(net.parameters())
    sizes = [torch.autograd.grad(term, weights[0], retain_graph=True)[0].norm() for term in (one, other)]
    return one + sizes[0] / sizes[1] * other


def by_noise(net: Any, x: Tensor) -> Tensor:
    """A forward pass that is another each time tells nothing, with a derivative or without."""
    return (net(x) * torch.randn(8, 1)).square().mean()


@pytest.mark.parametrize("loss", [with_graph, fast_gradient_sign, steepest_step, logged_only, balanced, by_noise])
def test_derivatives_that_may_be_plain(loss: Loss) -> None:
    assert lost_histories(mlp(), Objective(None, loss), points()) == ()


def test_nothing_stays_behind_even_where_the_program_raises() -> None:
    engine, draw, product = torch.autograd._engine_run_backward, Normal.sample, F.scaled_dot_product_attention

    def broken(net: Any, x: Tensor) -> Tensor:
        slope(net, x, graph=False)
        raise KeyError("the user's own")

    for find in (lost_histories, only_padding):
        with pytest.raises(KeyError, match="the user's own"):
            find(mlp(), Objective(None, broken), points())
    assert torch.autograd._engine_run_backward is engine
    assert Normal.sample is draw
    assert F.scaled_dot_product_attention is product


def test_model_and_random_state_stay_as_they_are() -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), mlp()), points()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    lost_histories(model, Objective(None, gradient_penalty), x)
    only_padding(model, Objective(None, gradient_penalty), x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


# ---- samples -------------------------------------------------------------------------------------------------------


class Coder(nn.Module):
    """An encoder, a draw, a decoder."""

    def __init__(self, draw: Callable[[Any], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(3, 8), nn.Linear(4, 3)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        mean, log_scale = self.encoder(x).chunk(2, dim=-1)
        return self.decoder(self.draw(Normal(mean, log_scale.exp())))


DRAWS: dict[str, tuple[Callable[[Any], Tensor], list[str]]] = {
    "sample": (lambda d: d.sample(), ["sample"]),
    "sample of an Independent": (lambda d: Independent(d, 1).sample(), ["sample"]),
    "scaled afterwards": (lambda d: 2 * torch.tanh(d.sample()), ["sample"]),
    "rsample": (lambda d: d.rsample(), []),
    "mean": (lambda d: d.mean, []),
    "a prior": (lambda d: Normal(torch.zeros_like(d.mean), 1.0).sample(), []),
    "on purpose": (lambda d: Normal(d.mean.detach(), 1.0).sample(), []),
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_a_layer_is_given(name: str) -> None:
    draw, expected = DRAWS[name]
    cuts = lost_histories(Coder(draw), Objective(F.mse_loss, None), (points(), points()))
    assert ops(cuts) == expected
    assert not cuts or cuts[0].where == "decoder"


def test_a_policy_draws_and_scores() -> None:
    """REINFORCE with a critic that reads the action: the gradient comes by log_prob."""
    actor, critic = mlp(3, 2), mlp(5, 1)
    both = nn.ModuleDict({"actor": actor, "critic": critic})

    def objective(net: Any, x: Tensor) -> Tensor:
        policy = Normal(net["actor"](x), 1.0)
        action = policy.sample()
        value = net["critic"](torch.cat([x, action], 1))
        return (value.square() - policy.log_prob(action).sum(1, keepdim=True) * value.detach()).mean()

    assert lost_histories(both, Objective(None, objective), points()) == ()


# ---- masks ---------------------------------------------------------------------------------------------------------


def words(*, empty: int = 0) -> Tensor:
    torch.manual_seed(1)
    ids = torch.randint(1, 20, (12, 10))
    lengths = torch.randint(3, 9, (12, 1))
    return ids.masked_fill(torch.arange(10) >= lengths, empty)


class Reader(nn.Module):
    """A Transformer encoder over padded words, each way to say what is padding."""

    def __init__(self, kind: str, *, turned: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(20, 16, padding_idx=0), nn.Parameter(torch.randn(10, 16))
        self.drop = nn.Dropout(0.1)
        first = kind != "time first"
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)
        self.kind, self.turned = kind, turned

    def forward(self, ids: Tensor) -> Tensor:
        padding = (ids == 0) ^ self.turned
        x = self.drop(self.words(ids) + self.places)
        if self.kind == "time first":
            y = self.encoder(x.transpose(0, 1), src_key_padding_mask=padding).transpose(0, 1)
        elif self.kind == "added":
            added = torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
            y = self.encoder(x, src_key_padding_mask=added)
        elif self.kind == "product":
            heads = x.unflatten(-1, (2, 8)).transpose(1, 2)
            mask = ~padding[:, None, None]
            y = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask).transpose(1, 2).flatten(2)
        elif self.kind == "causal product":
            heads = x.unflatten(-1, (2, 8)).transpose(1, 2)
            mask = ~padding[:, None, None] & torch.ones(10, 10, dtype=torch.bool).tril()
            y = F.scaled_dot_product_attention(heads, heads, heads, mask).transpose(1, 2).flatten(2)
        else:
            y = self.encoder(x, src_key_padding_mask=padding)
        return self.head(torch.nan_to_num(y).mean(1))


@pytest.mark.parametrize("kind", ["batch first", "time first", "added", "product", "causal product"])
@pytest.mark.parametrize("turned", [True, False])
def test_a_mask_that_is_turned_over(kind: str, turned: bool) -> None:
    target = torch.randint(4, (12,))
    cuts = only_padding(Reader(kind, turned=turned), Objective(F.cross_entropy, None), (words(), target))
    assert ops(cuts) == (["padding"] if turned else [])
    assert not cuts or ("product" in kind) == (cuts[0].where == "attention") or "self_attn" in cuts[0].where


@pytest.mark.parametrize("turned", [True, False])
def test_bert(turned: bool) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, **size))
    ids = words()
    batch = {"input_ids": ids, "attention_mask": ((ids != 0) ^ turned).long(), "labels": torch.randint(2, (12,))}
    assert ops(only_padding(model, Objective(None, None), batch)) == (["padding"] if turned else [])


def test_without_padding_there_is_nothing_to_turn() -> None:
    target, ids = torch.randint(4, (12,)), torch.randint(1, 20, (12, 10))
    assert only_padding(Reader("batch first", turned=False), Objective(F.cross_entropy, None), (ids, target)) == ()
