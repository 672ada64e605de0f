"""Autograd sees that a step wrote: a graph that saved what was there before refuses its backward, as in torch.optim."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unvanish.torch.rmsprop import RMSprop

STALE = "modified by an inplace operation"
FORMS = {
    "float32": torch.ones(3),
    "float64": torch.ones(3, dtype=torch.float64),
    "float16": torch.ones(3, dtype=torch.float16),
    "complex": torch.ones(3, dtype=torch.complex64),
    "transposed": torch.ones(2, 3).mT,
    "large": torch.ones(3000),
}


def stale_backward(make):
    """A second loss of a graph made before the step; the gradient of the first weights needs the last ones."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = make(net.parameters())
    out = net(torch.randn(5, 3))
    out.mean().backward(retain_graph=True)
    optimizer.step()
    out.square().mean().backward()


def test_torch_refuses_a_stale_backward():
    with pytest.raises(RuntimeError, match=STALE):
        stale_backward(torch.optim.RMSprop)


def test_a_stale_backward_is_refused(way):
    if "differentiable" in way:
        pytest.skip("autograd follows the step, so it takes no leaves")
    with pytest.raises(RuntimeError, match=STALE):
        stale_backward(lambda parameters: RMSprop(parameters, **way))


def test_a_stale_backward_through_the_average_is_refused():
    """As of a penalty that weighs each parameter by how much it mattered so far."""
    w = nn.Parameter(torch.ones(3))
    optimizer = RMSprop([w])
    w.grad = torch.ones(3)
    optimizer.step()
    penalty = (optimizer.state[w]["square_avg"] * w).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match=STALE):
        penalty.backward()


@pytest.mark.parametrize("form", FORMS)
def test_every_step_bumps_what_it_writes_and_nothing_else(form):
    w = nn.Parameter(FORMS[form].clone())
    optimizer = RMSprop([w], momentum=0.9, centered=True, clip=1.0)
    w.grad = torch.ones_like(w)
    for _ in range(3):
        written = [
            w,
            *(optimizer.state[w][key] for key in ("square_avg", "grad_avg", "momentum_buffer") if optimizer.state),
        ]
        before, gradient = [tensor._version for tensor in written], w.grad._version
        optimizer.step()
        assert all(tensor._version > version for tensor, version in zip(written, before, strict=True))
        assert w.grad._version == gradient


def test_what_has_no_gradient_keeps_its_version():
    with_gradient, without = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    with_gradient.grad = torch.ones(3)
    RMSprop([with_gradient, without]).step()
    assert without._version == 0


def test_tensors_of_inference_mode_have_no_version_and_are_updated():
    with torch.inference_mode():
        w = torch.ones(3)
        w.grad = torch.ones(3)
        RMSprop([w], lr=0.1, rho=0.0).step()
    assert w.tolist() == pytest.approx([0.9] * 3, rel=1e-6)
