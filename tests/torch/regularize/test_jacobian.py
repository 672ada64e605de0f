"""The Jacobian penalty: unbiased against the exact Jacobian, exact for one output, and differentiable."""

from __future__ import annotations

import copy

import pytest
import torch
from omega_oracle import central_differences
from torch import nn
from torch.func import functional_call, jacrev, vmap

from unvanish.torch.regularize import JacobianRegularizer


def net(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def exact(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Mean over samples of ||J||_F^2, J column by column."""
    parameters = dict(model.named_parameters())
    jacobians = vmap(jacrev(lambda row: functional_call(model, parameters, (row[None],))[0]))(x)
    return jacobians.square().sum((1, 2)).mean()


def measured(model: nn.Module, x: torch.Tensor, **options) -> torch.Tensor:
    jacobian = JacobianRegularizer(model, **options)
    with jacobian.watch():
        model(x)
    return jacobian.penalty()


def test_one_output_is_exact():
    model, x = net(1), torch.randn(7, 3, dtype=torch.float64)
    penalty = measured(model, x)
    torch.testing.assert_close(penalty, exact(model, x))
    weight = model[0].weight
    (gradient,) = torch.autograd.grad(penalty, weight)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(gradient, central_differences(lambda: exact(twin, x), twin[0].weight), rtol=1e-6, atol=0)


def test_the_estimate_is_unbiased_with_its_gradient():
    model, x = net(4), torch.randn(6, 3, dtype=torch.float64)
    many = measured(model, x, projections=4000)
    wanted = exact(model, x)
    torch.testing.assert_close(many, wanted, rtol=0.03, atol=0)
    got = torch.autograd.grad(many, model[0].weight)[0]
    expected = torch.autograd.grad(wanted, model[0].weight)[0]
    assert (got - expected).norm() < 0.05 * expected.norm()
    singles = [measured(model, x, seed=seed).item() for seed in range(400)]
    spread = torch.tensor(singles).std().item()
    assert spread > 0.01 * wanted.item()  # they are draws, not the mean
    assert torch.tensor(singles).mean().item() == pytest.approx(wanted.item(), abs=4 * spread / 20)


def test_images_keyword_inputs_and_inputs_with_a_graph():
    torch.manual_seed(0)

    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 2), nn.Linear(9, 1)

        def forward(self, image, *, extra, ids):
            assert ids.dtype == torch.int64
            return self.head(torch.cat([self.conv(image).flatten(1), extra], 1).tanh())

    model = TwoInputs().double()
    image = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    extra = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    jacobian = JacobianRegularizer(model)
    with jacobian.watch():
        model(image, extra=extra, ids=torch.zeros(4, dtype=torch.int64))
    leaves = [image.clone().requires_grad_(), extra]
    output = model(leaves[0], extra=extra, ids=torch.zeros(4, dtype=torch.int64))
    parts = torch.autograd.grad(output.sum(), leaves)
    torch.testing.assert_close(jacobian.penalty().item(), (sum(p.square().sum() for p in parts) / 4).item())
    assert not image.requires_grad


def test_nothing_of_the_users_changes():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))
    twin, x = copy.deepcopy(model), torch.randn(5, 3)
    torch.manual_seed(7)
    jacobian = JacobianRegularizer(model)
    with jacobian.watch():
        output = model(x)
    jacobian.penalty()
    state = torch.get_rng_state()
    torch.manual_seed(7)
    assert torch.equal(output, twin(x))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert all(p.grad is None for p in model.parameters())


def test_errors_say_what_to_do():
    model = nn.Embedding(4, 3)
    jacobian = JacobianRegularizer(model)
    with pytest.raises(ValueError, match="was watched"):
        jacobian.penalty()
    with jacobian.watch():
        model(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="behind the embedding"):
        jacobian.penalty()
    with pytest.raises(ValueError, match="at least 1"):
        JacobianRegularizer(model, projections=0)
    recurrent = nn.RNN(3, 4)
    jacobian = JacobianRegularizer(recurrent)
    with jacobian.watch():
        recurrent(torch.randn(5, 2, 3))
    with pytest.raises(ValueError, match="returned tuple"):
        jacobian.penalty()
