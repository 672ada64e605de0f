"""Both ways to read gradients, for tests that hold for both: a module that says ``reads = both_readings`` runs twice.

Not in a conftest.py: pytest cannot collect two of one name where folders are given by hand.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unvanish.torch import loops


@pytest.fixture(scope="module", params=["numba", "torch"])
def both_readings(request: pytest.FixtureRequest) -> Iterator[str]:
    """By the compiled loop, or by PyTorch's operations piece by piece."""
    if request.param == "numba" and not loops.compiled():
        pytest.skip("Numba is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(loops, "compiled", lambda: False)
        yield request.param
