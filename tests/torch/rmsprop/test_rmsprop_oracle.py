"""Any settings, any gradients, every way to compute the step: against a loop over Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from rmsprop_oracle import oracle

from unvanish.torch.rmsprop import RMSprop

SETTINGS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-3, 0.1]),
        "rho": st.sampled_from([0.0, 0.5, 0.9, 0.99]),
        "eps": st.sampled_from([1e-12, 1e-7, 1e-2]),
        "eps_inside": st.booleans(),
        "lr_in_momentum": st.booleans(),
        "centered": st.booleans(),
        "initial_accumulator": st.sampled_from([0.0, 1.0]),
        "bias_correction": st.booleans(),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "decoupled_weight_decay": st.booleans(),
        "clip": st.sampled_from([None, 1e-5, 1.0]),
        "maximize": st.booleans(),
    }
)
MOMENTUM = st.sampled_from([{}, {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}])
NUMBER = st.floats(-1e3, 1e3) | st.floats(-1e-6, 1e-6)
GRADIENT = NUMBER | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])
PROBLEM = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(NUMBER, min_size=n, max_size=n),
        st.lists(st.lists(GRADIENT, min_size=n, max_size=n), min_size=1, max_size=6),
    )
)


@pytest.mark.filterwarnings("ignore:RMSprop. .* NaN or Inf")
@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SETTINGS, MOMENTUM, PROBLEM)
def test_follows_the_oracle(way, settings, momentum, problem):
    start, gradients = problem
    settings = {**settings, **momentum}
    w = torch.tensor(start, dtype=torch.float64)
    optimizer = RMSprop([w], **settings, **way)
    for gradient in gradients:
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    expected = oracle(start, gradients, **settings)
    # centred, v - m^2 cancels: what is left of it is known to the rounding of v only
    tolerance = 1e-4 if settings["centered"] else 1e-11
    largest = max(map(abs, [*expected, 1.0]))
    torch.testing.assert_close(w, torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True])
def test_every_element_of_large_and_small_tensors(way, momentum, centered):
    """Sizes around the pieces, the blocks and the vector registers; the same function of each element."""
    generator = torch.Generator().manual_seed(0)
    sizes = (0, 1, 15, 17, 1025, 4095, 4097, 65536, 65537, 140001)
    parameters = [torch.randn(n, generator=generator, dtype=torch.float64) for n in sizes]
    other = [p.clone() for p in parameters]
    ours = RMSprop.like("torch", parameters, momentum=momentum, centered=centered, **way)
    theirs = torch.optim.RMSprop(other, momentum=momentum, centered=centered)
    for _ in range(3):
        for p, q in zip(parameters, other, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(parameters, other, rtol=0, atol=1e-13)


def test_threads_share_the_elements(monkeypatch):
    from unvanish.torch import loops

    if not loops.compiled():
        pytest.skip("Numba is not installed")
    monkeypatch.setattr(loops, "WORTH_A_THREAD", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(n, generator=generator) for n in (10, 5000, 1, 999, 2000)]
    other = [p.clone() for p in parameters]
    together, alone = RMSprop(parameters, clip=1.0), RMSprop(other, clip=1.0, foreach=False)
    assert len(loops.ranges(8010)) == 3
    for p, q in zip(parameters, other, strict=True):
        p.grad = torch.randn(p.shape, generator=generator)
        p.grad[-1] = math.nan
        q.grad = p.grad.clone()
    with pytest.warns(UserWarning, match="NaN or Inf"):
        together.step()
    with pytest.warns(UserWarning, match="NaN or Inf"):
        alone.step()
    torch.testing.assert_close(parameters, other, rtol=1e-6, atol=1e-7)
    assert all(together.state[p]["skipped"] == 1 for p in parameters)
    assert all(alone.state[p]["skipped"] == 1 for p in other)
