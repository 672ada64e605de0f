"""The stable rank from a sketch, against the full Jacobian."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.views.rank import PROJECTIONS, stable_rank


def net(depth: int, width: int = 24) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def by_full_jacobian(model: nn.Sequential, x: torch.Tensor) -> float:
    """The same sketch, made from the explicit Jacobian of each sample in float64."""
    double = model.double()
    first, between = double[:2], double[2:-1]
    hidden = first(x.double())
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(hidden.shape, generator=generator) for _ in range(PROJECTIONS)]
    ranks = []
    for i, h in enumerate(hidden.detach()):
        jacobian = torch.autograd.functional.jacobian(between, h)
        values = torch.linalg.svdvals(torch.stack([row[i].double() for row in rows]) @ jacobian)
        ranks.append(float((values**2).sum() / values[0] ** 2))
    return sum(ranks) / len(ranks)


@pytest.mark.parametrize("depth", [3, 12])
def test_equals_the_sketch_of_the_full_jacobian(depth):
    torch.manual_seed(depth)
    model, x, y = net(depth), torch.randn(8, 24), torch.randint(0, 3, (8,))
    measured = stable_rank(model, Objective(F.cross_entropy, None), (x, y))
    assert measured == pytest.approx(by_full_jacobian(model, x), rel=1e-3)


def test_a_deep_he_net_collapses_and_an_orthogonal_tanh_net_does_not():
    torch.manual_seed(0)
    x, y = torch.randn(16, 24), torch.randint(0, 3, (16,))
    collapsed = stable_rank(net(60), Objective(F.cross_entropy, None), (x, y))
    layers: list[nn.Module] = []
    for _ in range(60):
        linear = nn.Linear(24, 24)
        nn.init.orthogonal_(linear.weight)
        layers += [linear, nn.Tanh()]
    kept = stable_rank(nn.Sequential(*layers, nn.Linear(24, 3)), Objective(F.cross_entropy, None), (x, y))
    assert collapsed is not None
    assert kept is not None
    assert collapsed < 1.3
    assert kept > 1.5 * collapsed


def test_is_not_observed_where_nothing_lies_between():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    batch = (torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))
    assert stable_rank(model, Objective(F.cross_entropy, None), batch) is None
