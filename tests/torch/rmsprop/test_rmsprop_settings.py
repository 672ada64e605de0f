"""What RMSprop refuses, what it warns of, and what it says about small gradients."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from unvanish.torch.rmsprop import RMSprop, fused, gradient_floor


def parameter():
    return torch.nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "lr": [-1e-9, math.nan, math.inf, "0.1", None, torch.ones(2)],
        "rho": [-0.1, 1.0, 1.5, math.nan, None],
        "eps": [0.0, -1e-8, math.nan, math.inf],
        "momentum": [-1.0, 1.0, 2.0, math.nan],
        "weight_decay": [-0.1, math.nan, math.inf],
        "initial_accumulator": [-1.0, math.nan, math.inf],
        "clip": [0.0, -1.0, math.nan, math.inf],
    }.items(),
)
def test_numbers_out_of_range(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"RMSprop was given {name}=.* Expected .* To mend it: .*") as error:
            RMSprop([parameter()], **{name: value})
        assert "\n" not in str(error.value)


SWITCHES = ("eps_inside", "lr_in_momentum", "nesterov", "centered", "bias_correction", "decoupled_weight_decay")
MORE_SWITCHES = ("maximize", "foreach", "fused", "capturable", "differentiable")


@pytest.mark.parametrize("name", [*SWITCHES, *MORE_SWITCHES])
@pytest.mark.parametrize("value", ["no", "", 1, 0, 0.5, [], torch.tensor(True)])
def test_switches_that_are_neither_on_nor_off(name, value):
    """A word is true in Python: centered="no" would centre."""
    with pytest.raises(ValueError, match=rf"RMSprop was given {name}=.* Expected True.* False.* To mend it: .*"):
        RMSprop([parameter()], **{name: value})


@pytest.mark.parametrize("name", SWITCHES)
def test_no_switch_but_of_the_ways_may_be_left_open(name):
    with pytest.raises(ValueError, match=rf"{name}=None. Expected True or False"):
        RMSprop([parameter()], **{name: None})
    RMSprop([parameter()], foreach=None, fused=None)


RATES = pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, -1e-9])
REFUSED = r"RMSprop was given lr=tensor\(.*\)\. Expected a number in \[0, inf\)\. To mend it: .*"


@RATES
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_learning_rates_in_a_tensor_are_numbers_too(way, rate, shape, dtype):
    with pytest.raises(ValueError, match=REFUSED):
        RMSprop([parameter()], lr=torch.full(shape, rate, dtype=dtype), **way)
    optimizer = RMSprop([parameter()], **way)
    with pytest.raises(ValueError, match=REFUSED):
        optimizer.add_param_group({"params": [parameter()], "lr": torch.full(shape, rate, dtype=dtype)})
    assert len(optimizer.param_groups) == 1


@RATES
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_learning_rate_that_turns_bad_in_flight_changes_nothing(way, rate, clip):
    w, lr = torch.ones(3), torch.tensor(0.1)
    optimizer = RMSprop([w], lr=lr, clip=clip, **way)
    w.grad = torch.ones(3)
    optimizer.step()
    before, average = w.clone(), optimizer.state[w]["square_avg"].clone()
    lr.fill_(rate)
    with pytest.raises(ValueError, match=REFUSED):
        optimizer.step()
    assert torch.equal(w, before)
    assert torch.equal(optimizer.state[w]["square_avg"], average)
    assert int(optimizer.state[w]["step"]) == 1


def test_a_learning_rate_that_autograd_follows_is_checked_in_silence():
    rate = torch.tensor(0.1, requires_grad=True)
    RMSprop([parameter()], lr=rate * 2, differentiable=True)
    with pytest.raises(ValueError, match="lr=tensor"):
        RMSprop([parameter()], lr=rate * math.nan, differentiable=True)


def test_a_learning_rate_without_numbers_is_not_looked_at():
    RMSprop([parameter()], lr=torch.tensor(0.1, device="meta"))


@pytest.mark.parametrize(
    "pair",
    [
        {"nesterov": True},
        {"fused": True, "foreach": True},
        {"differentiable": True, "fused": True},
        {"differentiable": True, "capturable": True},
    ],
)
def test_settings_that_exclude_each_other(pair):
    with pytest.raises(ValueError, match=r"RMSprop was given .* Expected .* To mend it: "):
        RMSprop([parameter()], **pair)


def test_limits_that_are_allowed():
    RMSprop([parameter()], lr=0.0, rho=0.0, eps=5e-324, momentum=0.0, weight_decay=0.0)
    RMSprop([parameter()], lr=np.float32(0.1), rho=np.float64(0.9), clip=torch.tensor(1.0))
    RMSprop([parameter()], lr=1)


def test_a_group_edited_out_of_range_is_refused_at_the_step():
    w = parameter()
    optimizer = RMSprop([w])
    w.grad = torch.ones(2)
    optimizer.param_groups[0]["rho"] = 1.5
    with pytest.raises(ValueError, match=r"rho=1.5"):
        optimizer.step()
    assert w.tolist() == [1.0, 1.0]


def test_the_steps_of_other_groups_are_not_counted_when_one_is_refused():
    first, second = parameter(), parameter()
    optimizer = RMSprop([{"params": [first]}, {"params": [second]}])
    first.grad, second.grad = torch.ones(2), torch.ones(2)
    optimizer.param_groups[1]["rho"] = 1.5
    with pytest.raises(ValueError, match=r"rho=1.5"):
        optimizer.step()
    assert not optimizer.state


def test_a_refused_group_is_not_added():
    optimizer = RMSprop([parameter()])
    with pytest.raises(ValueError, match="momentum=-1"):
        optimizer.add_param_group({"params": [parameter()], "momentum": -1})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("library", ["caffe", None, []])
def test_an_unknown_library(library):
    with pytest.raises(ValueError, match=r"library=.* Expected one of keras, optax, torch, timm"):
        RMSprop.like(library, [parameter()])


def test_an_unknown_setting_is_a_type_error():
    with pytest.raises(TypeError):
        RMSprop.like("torch", [parameter()], alpha=0.9)


def test_fused_without_numba_warns_once_and_works(monkeypatch):
    monkeypatch.setattr(fused, "kernel", lambda: None)
    w = parameter()
    optimizer = RMSprop([w], lr=0.1, rho=0.0, fused=True)
    w.grad = torch.ones(2)
    with pytest.warns(UserWarning, match="fused=True has no effect .* Numba is not installed") as caught:
        optimizer.step()
    assert caught[0].filename == __file__
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.full((2,), 0.8))


def test_without_numba_nothing_is_said_by_default(monkeypatch):
    monkeypatch.setattr(fused, "kernel", lambda: None)
    w = parameter()
    w.grad = torch.ones(2)
    RMSprop([w]).step()


def test_foreach_with_sparse_gradients_warns():
    w = torch.ones(3, 2)
    w.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2), check_invariants=True)
    with pytest.warns(UserWarning, match="foreach=True has no part in sparse gradients"):
        RMSprop([w], foreach=True).step()


@pytest.mark.skipif(fused.kernel() is None, reason="Numba is not installed")
def test_fused_with_half_precision_warns():
    w = torch.ones(2, dtype=torch.float16)
    w.grad = torch.ones_like(w)
    with pytest.warns(UserWarning, match="fused=True has no effect .* float32 and float64"):
        RMSprop([w], fused=True).step()


@pytest.mark.parametrize("library", ["keras", "torch", "optax", "timm"])
def test_gradients_at_the_floor_move_by_half_the_learning_rate(library):
    w = torch.zeros(1, dtype=torch.float64)
    optimizer = RMSprop.like(library, [w], lr=1.0, rho=0.9)
    group = optimizer.param_groups[0]
    size = gradient_floor(group["eps"], eps_inside=group["eps_inside"])
    for _ in range(600):
        before = w.item()
        w.grad = torch.full((1,), size, dtype=torch.float64)
        optimizer.step()
    assert before - w.item() == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf, "a", "0.1", None, [], torch.ones(2)])
def test_the_floor_of_no_eps(eps):
    with pytest.raises(ValueError, match=r"gradient_floor was given eps=.* Expected .* To mend it"):
        gradient_floor(eps)


@pytest.mark.parametrize("place", ["no", None, 1])
def test_the_floor_of_no_place_for_eps(place):
    with pytest.raises(ValueError, match=r"gradient_floor was given eps_inside=.* Expected .* To mend it"):
        gradient_floor(1e-7, eps_inside=place)


def test_the_floor_of_an_eps_in_a_tensor():
    assert gradient_floor(torch.tensor(0.5, dtype=torch.float64), eps_inside=False) == 0.5


@pytest.mark.parametrize("decay", [1e-4, 1e-2])
def test_coupled_decay_of_a_vanished_gradient_is_sign_descent(decay):
    """Documented: it moves by about the learning rate each step, whatever the decay; decoupled shrinks by lr decay."""
    ends = {}
    for decoupled in (False, True):
        w = torch.full((1,), 0.05)
        optimizer = RMSprop([w], weight_decay=decay, decoupled_weight_decay=decoupled, eps=1e-16)
        for _ in range(10):
            w.grad = torch.zeros(1)
            optimizer.step()
        ends[decoupled] = w.item()
    assert ends[True] == pytest.approx(0.05 * (1 - 1e-3 * decay) ** 10, rel=1e-6)
    assert 0.03 < ends[False] < 0.04


def test_numba_is_loaded_at_the_first_step_only():
    program = (
        "import sys, torch; from unvanish.torch.rmsprop import RMSprop; o = RMSprop([torch.ones(1)]);"
        "sys.exit('numba' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(fused.kernel() is None, reason="Numba is not installed")
def test_no_second_openmp_comes_into_the_process():
    """It made PyTorch's small operations a hundred times slower."""
    program = (
        "import torch, pathlib; from unvanish.torch.rmsprop import RMSprop\n"
        "w = torch.ones(3_000_000); w.grad = torch.ones_like(w); torch.set_num_threads(2)\n"
        "omp = lambda: {line.split()[-1] for line in pathlib.Path('/proc/self/maps').read_text().splitlines()"
        " if any(name in line for name in ('libgomp', 'libiomp', 'libomp'))}\n"
        "before = omp(); RMSprop([w], fused=True).step(); assert omp() == before, omp() - before\n"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    subprocess.run([sys.executable, "-c", program], check=True)
