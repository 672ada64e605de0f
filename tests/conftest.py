"""One thread: the networks are small, and several test processes run side by side.

Property tests draw the same examples at each run, so that a change is judged by itself; others with
``HYPOTHESIS_PROFILE=random``.
"""

import os
import sys

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("random", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="module", params=["numba", "torch"])
def both_readings(request):
    """Tensors are read by compiled loops, or by PyTorch's operations: tests that use this hold for both."""
    from unvanish.torch import loops
    from unvanish.torch.probe import small

    if request.param == "numba" and not loops.compiled():
        pytest.skip("Numba is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "PRICE", 0)
        if request.param == "torch":
            patch.setattr(loops, "compiled", lambda: False)
        yield request.param


@pytest.fixture(autouse=True)
def one_thread():
    torch = sys.modules.get("torch")  # what needs no framework imports none
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def interpreter():
    """A script that is run in this process leaves its arguments and its ``__main__`` behind."""
    before = sys.argv, sys.path[:], sys.modules["__main__"]
    yield
    sys.argv, sys.path[:], sys.modules["__main__"] = before
