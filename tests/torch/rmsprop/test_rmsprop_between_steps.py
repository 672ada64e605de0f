"""What the compiled step knows from the step before, and everything people do to tensors in between.

The reference is the step in plain PyTorch, which knows nothing; it gets the same treatment.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch

from unvanish.torch import loops
from unvanish.torch.rmsprop import RMSprop, gather
from unvanish.torch.rmsprop.plan import Plan

pytestmark = pytest.mark.skipif(not loops.compiled(), reason="Numba is not installed")
SHAPES = [(3, 3), (4,), (1,), (), (70,), (0, 2)]


def gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def pair(**settings):
    """The same parameters twice: with the compiled optimizer, and with the reference."""
    both = []
    for chosen in ({}, {"foreach": False}):
        parameters = [torch.linspace(-1, 1, max(1, torch.Size(s).numel())).double() for s in SHAPES]
        parameters = [p[: torch.Size(s).numel()].reshape(s).clone() for p, s in zip(parameters, SHAPES, strict=True)]
        both.append((parameters, RMSprop(parameters, lr=0.1, **settings, **chosen)))
    return both


def replace_data(parameters, optimizer):
    parameters[0].data = parameters[0].data * 2


def transpose_data(parameters, optimizer):
    parameters[0].data = parameters[0].data.t()
    parameters[0].grad = torch.arange(9, dtype=torch.float64).reshape(3, 3)


def transpose_in_place(parameters, optimizer):
    parameters[0].grad = None
    parameters[0].t_()
    parameters[0].grad = torch.arange(9, dtype=torch.float64).reshape(3, 3)


def transposed_gradient(parameters, optimizer):
    parameters[0].grad = torch.arange(9, dtype=torch.float64).reshape(3, 3).t()


def expanded_gradient(parameters, optimizer):
    parameters[1].grad = torch.ones((), dtype=torch.float64).expand(4)


def gradient_with_the_sign_outstanding(parameters, optimizer):
    for p, shape in ((parameters[2], (1,)), (parameters[3], ())):
        p.grad = torch.full(shape, 1 + 2j, dtype=torch.complex128).conj().imag


def gradient_without_memory(parameters, optimizer):
    parameters[1].grad = torch._efficientzerotensor(4, dtype=torch.float64)


def sparse_gradient(parameters, optimizer):
    parameters[1].grad = torch.sparse_coo_tensor(
        [[1, 3]], torch.ones(2, dtype=torch.float64), (4,), check_invariants=True
    )


def no_gradient(parameters, optimizer):
    parameters[1].grad = None


def gradient_of_its_own_kind(parameters, optimizer):
    parameters[1].grad = torch.nn.Parameter(torch.ones(4, dtype=torch.float64), requires_grad=False)


def half_precision(parameters, optimizer):
    parameters[4].data = parameters[4].data.half()
    parameters[4].grad = torch.ones(70).half()
    optimizer.state.pop(parameters[4])


def state_replaced(parameters, optimizer):
    optimizer.state[parameters[0]]["square_avg"] = torch.ones(3, 3, dtype=torch.float64)


def state_data_replaced(parameters, optimizer):
    optimizer.state[parameters[0]]["square_avg"].data = torch.ones(3, 3, dtype=torch.float64)


def state_cleared(parameters, optimizer):
    optimizer.state.clear()


def state_of_one_removed(parameters, optimizer):
    del optimizer.state[parameters[0]]


def state_of_one_renewed(parameters, optimizer):
    state = optimizer.state[parameters[-1]]
    optimizer.state[parameters[-1]] = {key: copy.deepcopy(value) for key, value in state.items()}


def state_loaded(parameters, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def momentum_on(parameters, optimizer):
    optimizer.param_groups[0]["momentum"] = 0.9


def centered_on(parameters, optimizer):
    optimizer.param_groups[0]["centered"] = True


def bias_correction_on(parameters, optimizer):
    optimizer.param_groups[0]["bias_correction"] = True


def parameter_appended(parameters, optimizer):
    parameters.append(torch.ones(2, dtype=torch.float64))
    parameters[-1].grad = torch.ones(2, dtype=torch.float64)
    optimizer.param_groups[0]["params"].append(parameters[-1])


def parameter_removed(parameters, optimizer):
    optimizer.param_groups[0]["params"].pop(0)


def parameter_exchanged(parameters, optimizer):
    new = torch.ones(3, 3, dtype=torch.float64)
    new.grad = torch.ones_like(new)
    optimizer.state[new] = optimizer.state.pop(parameters[0])
    optimizer.param_groups[0]["params"][0] = parameters[0] = new


def parameter_new_in_its_place(parameters, optimizer):
    new = torch.ones(3, 3, dtype=torch.float64)
    new.grad = torch.ones_like(new)
    optimizer.param_groups[0]["params"][0] = parameters[0] = new


def parameters_reordered(parameters, optimizer):
    optimizer.param_groups[0]["params"].reverse()


def group_added(parameters, optimizer):
    parameters.append(torch.ones(2, dtype=torch.float64))
    parameters[-1].grad = torch.ones(2, dtype=torch.float64)
    optimizer.add_param_group({"params": [parameters[-1]], "lr": 0.5, "momentum": 0.5})


def groups_exchanged(parameters, optimizer):
    group_added(parameters, optimizer)
    optimizer.param_groups.reverse()


CHANGES = [
    replace_data, transpose_data, transpose_in_place, transposed_gradient, expanded_gradient,
    gradient_with_the_sign_outstanding, gradient_without_memory, sparse_gradient, no_gradient,
    gradient_of_its_own_kind, half_precision, state_replaced, state_data_replaced, state_cleared,
    state_of_one_removed, state_of_one_renewed, state_loaded, momentum_on, centered_on, bias_correction_on,
    parameter_appended, parameter_removed, parameter_exchanged, parameter_new_in_its_place, parameters_reordered,
    group_added, groups_exchanged,
]  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True, "clip": 0.5}], ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_the_next_steps_are_those_of_an_optimizer_without_memory(change, settings):
    ends = []
    for parameters, optimizer in pair(**settings):
        for seed in range(2):
            gradients(parameters, seed)
            optimizer.step()
        gradients(parameters, 2)
        change(parameters, optimizer)
        optimizer.step()
        for seed in range(3, 5):
            gradients(parameters, seed)
            optimizer.step()
        ends.append((parameters, [int(optimizer.state[p]["step"]) for p in parameters]))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-13, atol=1e-14)
    assert ends[0][1] == ends[1][1]


def shrunk_data(parameters, optimizer):
    parameters[4].data = parameters[4].data[:5]


def shrunk_in_place(parameters, optimizer):
    parameters[4].grad = None
    parameters[4].resize_(5)
    parameters[4].grad = torch.ones(5, dtype=torch.float64)


def gradient_shrunk(parameters, optimizer):
    parameters[4].grad.data = torch.ones(5, dtype=torch.float64)


def gradient_shrunk_in_place(parameters, optimizer):
    parameters[4].grad.resize_(5)


def state_shrunk(parameters, optimizer):
    optimizer.state[parameters[4]]["square_avg"].resize_(5)


def state_data_shrunk(parameters, optimizer):
    optimizer.state[parameters[4]]["square_avg"].data = torch.ones(5, dtype=torch.float64)


@pytest.mark.parametrize(
    "change",
    [shrunk_data, shrunk_in_place, gradient_shrunk, gradient_shrunk_in_place, state_shrunk, state_data_shrunk],
)
def test_memory_that_became_too_short_is_not_overrun(change):
    (parameters, optimizer), _ = pair()
    for seed in range(3):
        gradients(parameters, seed)
        if seed < 2:
            optimizer.step()
    change(parameters, optimizer)
    with pytest.raises(ValueError, match=r"with a gradient or state of shape.*Expected equal shapes"):
        optimizer.step()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_does_not_write_into_the_original(copied):
    (parameters, optimizer), _ = pair()
    gradients(parameters, 0)
    optimizer.step()
    others, second = copied((parameters, optimizer))
    before = [p.clone() for p in parameters]
    gradients(others, 1)
    second.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))
    assert not torch.equal(others[0], parameters[0])


def test_gradients_are_not_kept_alive():
    (parameters, optimizer), _ = pair()
    for seed in range(2):
        gradients(parameters, seed)
        optimizer.step()
    watch = [weakref.ref(p.grad) for p in parameters]
    optimizer.zero_grad()
    gc.collect()
    assert all(ref() is None for ref in watch)


def test_what_is_as_before_is_not_looked_up_again(monkeypatch):
    """New gradients every time, as after ``zero_grad``; and a parameter that never has one costs nothing."""
    (parameters, optimizer), _ = pair()
    unused = torch.ones(3, dtype=torch.float64)
    optimizer.param_groups[0]["params"].append(unused)
    gradients(parameters, 0)
    optimizer.step()
    monkeypatch.setattr(gather, "_slot", None)
    monkeypatch.setattr(Plan, "of", None)
    for seed in range(1, 4):
        optimizer.zero_grad()
        gradients(parameters, seed)
        optimizer.step()
    assert [optimizer.state[p]["step"] for p in parameters] == [4] * len(parameters)


def test_a_parameter_that_has_a_gradient_only_sometimes():
    ends = []
    for parameters, optimizer in pair(momentum=0.5):
        for seed in range(6):
            gradients(parameters, seed)
            if seed % 2:
                parameters[1].grad = None
            optimizer.step()
        ends.append(parameters)
    torch.testing.assert_close(*ends, rtol=1e-13, atol=1e-14)


def test_autograd_leaves_the_sign_outstanding():
    """The case is real: a number that is the imaginary part of another goes the wrong way if memory is taken as is."""
    w = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = RMSprop([w], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = (torch.complex(torch.tensor(2.0), w).conj() * (3 + 4j)).real
        loss.backward()
        assert w.grad.is_neg()
        before = loss.item()
        optimizer.step()
        assert (torch.complex(torch.tensor(2.0), w).conj() * (3 + 4j)).real < before
