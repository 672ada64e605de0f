"""What a probe may not leave behind, and what is measured in pieces."""

from __future__ import annotations

import gc
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from oracle import site, watch
from torch import nn

from unvanish.torch.probe.buffers import QUEUE_BYTES
from unvanish.torch.probe.collector import without_collector
from unvanish.torch.probe.frozen import maker
from unvanish.types import Moments, Site


def left_in_cycles(work) -> list[str]:
    """Types of ours, and tensors, among what only the cycle collector can free after ``work()``.

    Not all garbage counts: other libraries in this process leave some at any time.
    """
    for _ in range(3):  # finalizers of earlier tests' objects may free more of them
        gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        work()
        gc.collect()
        found = [type(one) for one in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    return [kind.__name__ for kind in found if kind.__module__.startswith("unvanish") or issubclass(kind, torch.Tensor)]


def test_a_probe_leaves_nothing_for_the_cycle_collector() -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(4, 6)

    def probed() -> None:
        watch(model, lambda m: m(x).square().sum(), 4)

    def knotted() -> None:
        tensor = torch.randn(3)
        tensor.itself = tensor

    probed()
    assert left_in_cycles(knotted) == ["Tensor"]
    assert left_in_cycles(probed) == []


def test_the_collector_is_left_as_it_was() -> None:
    frozen, thresholds = gc.get_freeze_count(), gc.get_threshold()
    collections: list[str] = []
    gc.collect()
    gc.callbacks.append(lambda phase, _: collections.append(phase))
    try:
        with without_collector():
            kept = [[i] for i in range(5 * thresholds[0])]
            assert not gc.isenabled()
        more = [[i] for i in range(10)]
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
    assert (gc.get_freeze_count(), gc.get_threshold()) == (frozen, thresholds)
    assert collections == [], (len(kept), len(more))
    gc.disable()
    try:
        with without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_frozen_instances_made_quickly_are_like_any_other() -> None:
    for kind, values in ((Moments, {"count": 3, "rms": 1.0, "mean": 0.5}), (Site, {"name": "a", "op": "tanh"})):
        known = {"kind": "activation", "order": 1, "shape": (2, 3)} if kind is Site else {}
        quick, slow = maker(kind)(**values, **known), kind(**values, **known)  # type: ignore[arg-type]
        assert type(quick) is kind
        assert quick == slow
        assert hash(quick) == hash(slow)
        assert repr(quick) == repr(slow)
        assert pickle.loads(pickle.dumps(quick)) == slow
        with pytest.raises(FrozenInstanceError):
            setattr(quick, next(iter(values)), 1)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid(), nn.ReLU()])
@pytest.mark.parametrize("channels", [False, True])
def test_dead_and_saturated_units_of_a_tensor_larger_than_a_queue(activation: nn.Module, channels: bool) -> None:
    torch.manual_seed(0)
    first: nn.Module = nn.Conv2d(2, 9, 3, padding=1) if channels else nn.Linear(40, 9)
    x = torch.randn(37, 2, 30, 30) if channels else torch.randn(8000, 40)
    with torch.no_grad():
        first.weight[:4] *= 100
        first.bias[4] = -1e4
        first.weight[5] = 0
        first.weight[(5, 0, 1, 1) if channels else (5, 0)] = 1
        first.bias[5] = -1e4 + 0.5
        x[0, 0] = 1e4  # unit 5 is alive for the first sample alone
    model = nn.Sequential(first, activation)
    z = first(x).detach().double()
    assert z.numel() * 4 > QUEUE_BYTES
    z.requires_grad_()
    slope = torch.autograd.grad(activation(z).sum(), z)[0]
    units = slope.transpose(0, 1).flatten(1) if channels else slope.T
    found = site(watch(model, lambda m: m(x).square().sum(), len(x)), "1")
    assert found.dead == pytest.approx(float((units.amax(dim=1) <= 1e-6).double().mean()))
    if not isinstance(activation, nn.ReLU):
        largest = 1.0 if isinstance(activation, nn.Tanh) else 0.25
        assert found.saturated == pytest.approx(float((slope < 0.05 * largest).double().mean()), abs=1e-5)
    assert found.dead is not None
    assert 0 < found.dead < 1
