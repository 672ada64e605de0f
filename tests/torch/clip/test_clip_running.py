"""AutoClip against NumPy's percentile over the window, ZClip against the paper, what must not poison them."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unvanish.torch.clip import AutoClip, ClipReport, ZClip

Clipper = AutoClip | ZClip
NORMS = st.lists(st.floats(-30, 30).map(lambda e: 10.0**e), min_size=1, max_size=40)


def feed(clip: Clipper, norm: float) -> tuple[ClipReport, float]:
    """(report, norm afterwards) for one float64 gradient of this norm."""
    weight = torch.zeros(2, dtype=torch.float64)
    weight.grad = torch.tensor([0.6, 0.8], dtype=torch.float64) * norm
    return clip(weight), float(torch.linalg.vector_norm(weight.grad))


@settings(max_examples=200, deadline=None)
@given(NORMS, st.floats(0.001, 1), st.integers(1, 12))
def test_autoclip_is_numpy_percentile_of_the_window(norms: list[float], quantile: float, history: int) -> None:
    clip = AutoClip(quantile, history=history)
    for step, norm in enumerate(norms, 1):
        report, after = feed(clip, norm)
        bound = float(np.quantile(np.array(norms[max(0, step - history) : step]), quantile))
        assert report.norm == pytest.approx(norm, rel=1e-12)
        assert after == pytest.approx(min(norm, bound), rel=1e-9)
        assert clip.maximum == pytest.approx(bound, rel=1e-9)


def test_autoclip_memory_is_bounded() -> None:
    clip = AutoClip(0.5, history=10)
    for step in range(1000):
        feed(clip, 1.0 + step)
    assert len(clip.state_dict()["norms"]) == 10
    assert clip.maximum == pytest.approx(995.5)


class PaperZClip:
    """Section 3 of the paper on plain numbers; the small constant relative to the mean."""

    def __init__(self, threshold: float, decay: float, warmup: int) -> None:
        self.threshold, self.decay, self.warmup = threshold, decay, warmup
        self.first: list[float] = []
        self.mean = self.variance = 0.0

    def __call__(self, norm: float) -> float:
        if len(self.first) < self.warmup:
            self.first.append(norm)
            self.mean, self.variance = float(np.mean(self.first)), float(np.var(self.first))
            return norm
        sigma = self.variance**0.5
        z = (norm - self.mean) / (sigma + 1e-6 * self.mean)
        if z > self.threshold:
            norm = self.mean + self.threshold * sigma / (z / self.threshold)
        self.mean = self.decay * self.mean + (1 - self.decay) * norm
        self.variance = self.decay * self.variance + (1 - self.decay) * (norm - self.mean) ** 2
        return norm


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0.1, 1.0) | st.floats(5, 1000), min_size=8, max_size=60),
    st.floats(0.5, 4),
    st.floats(0.5, 0.99),
    st.integers(2, 6),
    st.sampled_from([1e-100, 1e-40, 1e-9, 1.0, 1e30]),
)
def test_zclip_is_the_paper_at_every_scale(
    norms: list[float], threshold: float, decay: float, warmup: int, unit: float
) -> None:
    """The authors' absolute 1e-6 blinds it below that norm."""
    clip, paper = ZClip(threshold, decay=decay, warmup=warmup), PaperZClip(threshold, decay, warmup)
    for norm in norms:
        report, after = feed(clip, norm * unit)
        assert report.norm == pytest.approx(norm * unit, rel=1e-12, abs=0)
        assert after == pytest.approx(paper(norm) * unit, rel=1e-6, abs=0)


def test_zclip_constant_norms_and_then_a_spike() -> None:
    clip = ZClip(warmup=5)
    for _ in range(20):
        assert feed(clip, 2.0)[1] == pytest.approx(2.0, rel=1e-12)
    assert feed(clip, 100.0)[1] == pytest.approx(2.0, rel=1e-5)


def spike_after(clip: Clipper, bad: Tensor) -> float:
    """Norm that a spike of 100 is brought to, after norms near 1 with one bad gradient among them."""
    for step in range(60):
        if step == 40:
            weight = torch.zeros(2)
            weight.grad = bad.clone()
            before = copy.deepcopy(clip.state_dict())
            report = clip(weight)
            assert report.skipped == (not bool(bad.isfinite().all()))
            assert clip.state_dict() == before, "nothing learned from it"
            assert torch.equal(weight.grad.nan_to_num(), bad.nan_to_num()), "nothing written"
        feed(clip, 1.0 + 0.1 * (step % 5))
    return feed(clip, 100.0)[1]


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, math.nan], [0.0, 0.0]])
@pytest.mark.parametrize("make", [lambda: AutoClip(0.9, nonfinite="skip"), lambda: ZClip(nonfinite="skip")])
def test_one_bad_norm_does_not_poison_the_state(make: Any, bad: list[float]) -> None:
    """Peers: one NaN switches clipping off for ever; a norm of 0 would make 0 the bound."""
    assert spike_after(make(), torch.tensor(bad)) < 2.0


@pytest.mark.parametrize("make", [AutoClip, ZClip])
def test_raise_learns_nothing(make: Any) -> None:
    clip = make()
    feed(clip, 1.0)
    before = copy.deepcopy(clip.state_dict())
    with pytest.raises(ValueError, match="NaN or Inf"):
        feed(clip, math.nan)
    assert clip.state_dict() == before


@pytest.mark.parametrize("make", [AutoClip, ZClip])
def test_a_step_without_gradients_is_no_norm(make: Any) -> None:
    clip = make()
    before = copy.deepcopy(clip.state_dict())
    assert clip([torch.zeros(3)]).tensors == 0
    assert clip([]).norm == 0
    assert clip.state_dict() == before


def reloaded(clip: Clipper, make: Any) -> Clipper:
    file = io.BytesIO()
    torch.save(clip.state_dict(), file)
    file.seek(0)
    fresh = make()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


COPIES = {
    "state_dict": reloaded,
    "deepcopy": lambda clip, make: copy.deepcopy(clip),
    "pickle": lambda clip, make: pickle.loads(pickle.dumps(clip)),
}


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("make", [lambda: AutoClip(0.4, history=7), lambda: ZClip(1.5, decay=0.9, warmup=4)])
@pytest.mark.parametrize("steps", [0, 3, 4, 25])
def test_round_trips(way: Any, make: Any, steps: int) -> None:
    torch.manual_seed(steps)
    norms = torch.rand(steps + 20).exp().tolist()
    clip = make()
    for norm in norms[:steps]:
        feed(clip, norm)
    other = way(clip, make)
    assert other.state_dict() == clip.state_dict()
    ahead = [feed(other, norm)[1] for norm in norms[steps:]]
    assert [feed(clip, norm)[1] for norm in norms[steps:]] == ahead, "and they share nothing"


def test_a_shorter_history_keeps_the_last_norms() -> None:
    clip = AutoClip(0.5, history=2)
    clip.load_state_dict({"norms": [1.0, 2.0, 3.0]})
    assert clip.state_dict() == {"norms": [2.0, 3.0]}


GOOD = {"first": [1.0, 2.0], "mean": 1.5, "deviation": 0.5}


@pytest.mark.parametrize(
    ("clip", "state"),
    [
        (AutoClip(), {}),
        (AutoClip(), {"norms": [1.0, math.nan]}),
        (AutoClip(), {"norms": [1.0, -1.0]}),
        (AutoClip(), {"norms": [1.0], "more": 1}),
        (AutoClip(), {"norms": [0.0] * 1000}),
        (AutoClip(), {"norms": [1.0, "a"]}),
        (AutoClip(), {"norms": 1.0}),
        (AutoClip(), None),
        (AutoClip(), [1.0]),
        (ZClip(), None),
        (ZClip(), "a"),
        (ZClip(warmup=2), {**GOOD, "first": None}),
        (ZClip(warmup=2), {**GOOD, "first": [0.0, 3.0]}),
        (ZClip(warmup=2), {**GOOD, "deviation": -1.0}),
        (ZClip(warmup=2), {**GOOD, "mean": "a"}),
        (ZClip(), {"norms": [1.0]}),
        (ZClip(warmup=2), {**GOOD, "mean": math.inf}),
        (ZClip(warmup=3), GOOD),
        (ZClip(warmup=2), {**GOOD, "first": [1.0]}),
        (ZClip(warmup=2), {**GOOD, "first": [1.0, 2.0, 3.0]}),
    ],
)
def test_bad_states_change_nothing(clip: Clipper, state: Any) -> None:
    before = copy.deepcopy(clip.state_dict())
    with pytest.raises(ValueError, match=r"the state has.*Expected"):
        clip.load_state_dict(state)
    assert clip.state_dict() == before


@pytest.mark.parametrize("quantile", [0.0, -0.1, 1.1, math.nan, "a", None, []])
def test_senseless_quantiles(quantile: Any) -> None:
    with pytest.raises(ValueError, match=r"quantile=.*Expected"):
        AutoClip(quantile)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"threshold": math.inf}, "threshold"),
        ({"decay": 0.0}, "decay"),
        ({"decay": 1.0}, "decay"),
        ({"decay": math.nan}, "decay"),
        ({"threshold": "a"}, "threshold"),
        ({"decay": None}, "decay"),
        ({"warmup": 1}, "warmup"),
        ({"warmup": 2.5}, "warmup"),
        ({"warmup": math.inf}, "warmup"),
        ({"warmup": "25"}, "warmup"),
        ({"warmup": None}, "warmup"),
    ],
)
def test_senseless_zclip_settings(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.*Expected"):
        ZClip(**settings)


@pytest.mark.parametrize("history", [0, 2.5, math.inf, math.nan, "9", None])
def test_a_history_of_nothing(history: Any) -> None:
    with pytest.raises(ValueError, match=r"history=.*Expected a whole number"):
        AutoClip(history=history)
    assert AutoClip().maximum == math.inf


def test_whole_numbers_of_other_kinds() -> None:
    clip = ZClip(warmup=np.int64(2))
    for norm in (1.0, 1.0, 100.0):
        _, after = feed(clip, norm)
    assert after == pytest.approx(1.0, rel=1e-5)
    assert feed(AutoClip(np.float32(0.5), history=3.0), 2.0)[1] == 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [AutoClip, ZClip])
@pytest.mark.parametrize("policy", [None, "drop", []])
def test_policies_that_are_none(make: Any, policy: Any) -> None:
    with pytest.raises(ValueError, match=r"nonfinite=.*Expected one of"):
        make(nonfinite=policy)
