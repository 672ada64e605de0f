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
