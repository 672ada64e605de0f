"""Bad input to the regularisers: what happened, what was expected, how to mend it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unvanish.torch.regularize import JacobianRegularizer, OmegaRegularizer, SoftOrthogonality, SpectralIsometry

NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", [JacobianRegularizer, OmegaRegularizer, SoftOrthogonality, SpectralIsometry])
@pytest.mark.parametrize("model", [None, "net", 3, NET[0].weight, nn.Linear])
def test_what_is_no_model(kind, model):
    with pytest.raises(ValueError, match=rf"{kind.__name__}: the model is a \w+\. Expected .+\. Pass .+\."):
        kind(model)


@pytest.mark.parametrize("projections", [0, -1, 1.5, math.nan, math.inf, "a", None, True])
def test_projections_are_counted_in_whole_numbers(projections):
    with pytest.raises(ValueError, match=r"projections=.+\. Expected a whole number of at least 1\. Give 1"):
        JacobianRegularizer(NET, projections)


@pytest.mark.parametrize("kind", [JacobianRegularizer, SpectralIsometry])
@pytest.mark.parametrize("seed", ["a", 1.5, None])
def test_seeds_are_whole_numbers(kind, seed):
    with pytest.raises(ValueError, match=r"seed=.+\. Expected a whole number\. Give 0"):
        kind(NET, seed=seed)


@pytest.mark.parametrize("loss", [3.0, None, torch.ones(2, requires_grad=True), torch.tensor(1.0)])
def test_what_is_no_loss(loss):
    omega = OmegaRegularizer(NET)
    with omega.watch():
        NET(torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"Omega: the loss .+\. Expected a scalar with a graph\. Pass the loss itself"):
        omega.penalty(loss)
