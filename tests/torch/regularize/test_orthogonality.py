"""Orthogonality penalties against their definition, exact spectral norms and finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omega_oracle import central_differences
from torch import nn

from unvanish.torch.regularize import SoftOrthogonality, SpectralIsometry


def residuals(model: nn.Module) -> list[torch.Tensor]:
    """W^T W - I of each matrix on its smaller side, spelled out layer kind by layer kind."""
    found = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            found.append(module.weight)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            size = module.out_channels // module.groups
            found += [module.weight[g * size : (g + 1) * size].reshape(size, -1) for g in range(module.groups)]
        elif isinstance(module, nn.ConvTranspose2d):
            size = module.in_channels // module.groups
            found += [module.weight[g * size : (g + 1) * size].reshape(size, -1) for g in range(module.groups)]
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            for name, weight in module.named_parameters():
                if name.startswith("weight_hh"):
                    found += weight.split(module.hidden_size)
    tall = [m if m.shape[0] >= m.shape[1] else m.T for m in found]
    return [m.T @ m - torch.eye(m.shape[1], dtype=m.dtype) for m in tall]


def zoo() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleList(
        [
            nn.Linear(5, 3),
            nn.Linear(3, 5, bias=False),
            nn.Conv1d(4, 6, 2, groups=2),
            nn.Conv2d(3, 3, 2, groups=3),
            nn.ConvTranspose2d(4, 6, 2, groups=2),
            nn.LSTM(2, 3, bidirectional=True),
            nn.GRUCell(2, 3),
            nn.RNN(2, 3, num_layers=2),
            nn.BatchNorm1d(3),
            nn.Embedding(4, 3),
        ]
    ).double()


def test_soft_orthogonality_is_the_sum_over_matrices():
    model = zoo()
    penalty = SoftOrthogonality(model).penalty()
    expected = sum(r.square().sum() for r in residuals(model))
    torch.testing.assert_close(penalty, expected)
    penalty.backward()
    trained = [p for p in model.parameters() if p.grad is not None]
    wanted = torch.autograd.grad(expected, trained)
    for parameter, gradient in zip(trained, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    assert names == {n for n, _ in model.named_parameters() if n.endswith("weight") or "weight_hh" in n} - {
        "8.weight",
        "9.weight",
    }


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), seed=st.integers(0, 1000))
def test_spectral_isometry_arrives_at_the_exact_norm_and_its_gradient(rows, columns, seed):
    torch.manual_seed(seed)
    model = nn.Linear(columns, rows).double()
    isometry = SpectralIsometry(model)
    exact = torch.linalg.matrix_norm(residuals(model)[0], 2)
    for _ in range(3000):
        penalty = isometry.penalty()
        assert penalty.item() <= exact.item() * (1 + 1e-12)
        if penalty.item() > exact.item() * (1 - 1e-13):
            break
    assert penalty.item() == pytest.approx(exact.item(), rel=1e-3)
    values = torch.linalg.svdvals(residuals(model)[0])
    if len(values) > 1 and values[1] > 0.9 * values[0]:
        return  # two directions compete: the gradient jumps between theirs
    for _ in range(400):
        penalty = isometry.penalty()
    (gradient,) = torch.autograd.grad(penalty, model.weight)
    (wanted,) = torch.autograd.grad(torch.linalg.matrix_norm(residuals(model)[0], 2), model.weight)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-8)


def test_spectral_isometry_of_every_layer_kind():
    model = zoo()
    isometry = SpectralIsometry(model)
    for _ in range(2000):
        penalty = isometry.penalty()
    expected = sum(torch.linalg.matrix_norm(r, 2) for r in residuals(model))
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-4)
    penalty.backward()
    weight = model[2].weight
    copied = copy.deepcopy(model)

    def exact():
        return sum(torch.linalg.matrix_norm(r, 2) for r in residuals(copied))

    torch.testing.assert_close(weight.grad, central_differences(exact, copied[2].weight), rtol=1e-3, atol=1e-4)


def test_one_call_has_the_gradient_of_its_own_value():
    model = nn.Linear(4, 6).double()
    start = SpectralIsometry(model, seed=3)
    penalty = start.penalty()
    (gradient,) = torch.autograd.grad(penalty, model.weight)
    expected = central_differences(lambda: SpectralIsometry(model, seed=3).penalty(), model.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [SoftOrthogonality, SpectralIsometry])
def test_orthogonal_weights_are_left_alone(kind):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for module in (model[0], model[2]):
        nn.init.orthogonal_(module.weight)
    penalty = kind(model).penalty()
    assert penalty.item() < 1e-12
    penalty.backward()
    assert model[0].weight.grad.isfinite().all()
    eye = nn.Linear(3, 3).double()
    nn.init.eye_(eye.weight)
    isometry = SpectralIsometry(eye)
    assert isometry.penalty().item() == 0  # R v = 0 has no direction
    eye.weight.data[0, 0] = 2.0
    for _ in range(30):
        penalty = isometry.penalty()
    assert penalty.item() == pytest.approx(3)


@pytest.mark.parametrize("kind", [SoftOrthogonality, SpectralIsometry])
def test_shared_frozen_parametrised_and_narrow_weights(kind):
    torch.manual_seed(0)
    shared = nn.Linear(3, 3).double()
    one = kind(nn.Sequential(shared)).penalty()
    torch.testing.assert_close(kind(nn.Sequential(shared, nn.Tanh(), shared)).penalty(), one)
    nn.utils.parametrizations.weight_norm(shared)
    penalty = kind(shared).penalty()
    torch.testing.assert_close(penalty, one)
    penalty.backward()
    assert all(p.grad is not None for p in shared.parametrizations.parameters())
    narrow = nn.Linear(3, 3).bfloat16()
    kind(narrow).penalty().backward()
    assert narrow.weight.grad.dtype == torch.bfloat16
    narrow.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable weight"):
        kind(narrow)


def test_random_streams_are_not_touched():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    isometry = SpectralIsometry(nn.utils.skip_init(nn.Linear, 3, 3))
    isometry.penalty()
    assert torch.equal(state, torch.get_rng_state())
