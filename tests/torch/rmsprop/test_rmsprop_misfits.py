"""What does not fit: state and gradients of other shapes, devices without numbers; and the step under torch.compile."""

from __future__ import annotations

import pytest
import torch

from unvanish.torch.rmsprop import RMSprop


def stepped(shape, **settings):
    p = torch.ones(shape)
    p.grad = torch.ones(shape)
    optimizer = RMSprop([p], **settings)
    optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("shape", [(5,), (2,), (3, 1)])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5, "centered": True}], ids=str)
def test_a_parameter_whose_data_was_replaced(way, shape, settings):
    """The compiled loop would read and write memory that is not the state's."""
    p, optimizer = stepped(3, **settings, **way)
    p.data = torch.ones(shape)
    p.grad = torch.ones(shape)
    with pytest.raises(ValueError, match=r"state of shape \(3,\).*Expected equal shapes.*delete optimizer.state"):
        optimizer.step()
    assert (p == 1).all()


def test_a_gradient_left_over_from_other_data(way):
    p, optimizer = stepped(3, **way)
    p.data = torch.ones(1000)  # the gradient still has three entries
    optimizer.state.clear()
    with pytest.raises(ValueError, match=r"parameter of shape \(1000,\) with a gradient or state of shape \(3,\)"):
        optimizer.step()
    assert (p == 1).all()


def test_a_state_of_other_shapes_is_refused_before_anything_changes():
    _, small = stepped((3, 2))
    p, large = stepped((2, 3))
    kept = large.state[p]["square_avg"].clone()
    with pytest.raises(ValueError, match=r"square_avg of parameter 0 has shape \(3, 2\); the parameter has \(2, 3\)"):
        large.load_state_dict(small.state_dict())
    assert torch.equal(large.state[p]["square_avg"], kept)
    large.step()


def test_torch_loads_such_a_state():
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    p.grad, q.grad = torch.ones(3), torch.ones(2)
    small, large = torch.optim.RMSprop([p]), torch.optim.RMSprop([q])
    small.step()
    large.load_state_dict(small.state_dict())
    assert large.state[q]["square_avg"].shape == (3,)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_parameters_without_numbers(way, clip):
    p = torch.ones(2, device="meta")
    p.grad = torch.ones(2, device="meta")
    with pytest.raises(ValueError, match=r"shape \(2,\) on the meta device.*Expected a real device.*materialise"):
        RMSprop([p], clip=clip, **way).step()


@pytest.mark.parametrize("settings", [{}, {"clip": 0.1, "momentum": 0.5}, {"foreach": True}], ids=str)
def test_the_compiled_step_is_the_step(settings):
    """``torch.compile(optimizer.step)``: no warning, the same numbers."""
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(3, 4))
    theirs = torch.nn.Parameter(ours.detach().clone())
    plain, traced = RMSprop([ours], **settings), RMSprop([theirs], **settings)
    compiled = torch.compile(traced.step, backend="eager")
    for _ in range(3):
        ours.grad = torch.randn(3, 4)
        theirs.grad = ours.grad.clone()
        plain.step()
        compiled()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
