"""Every way the step is computed, for tests that hold for all of them."""

from __future__ import annotations

import pytest

from unvanish.torch.rmsprop import fused

WAYS = {
    "numba": {"fused": True},
    "pieces": {"foreach": False},
    "side by side": {"foreach": True},
    "capturable": {"capturable": True},
    "differentiable": {"differentiable": True},
}


@pytest.fixture(params=list(WAYS))
def way(request):
    """Settings that choose a way to compute the step."""
    if request.param == "numba" and fused.kernel() is None:
        pytest.skip("Numba is not installed")
    return WAYS[request.param]
