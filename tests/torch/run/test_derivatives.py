"""Which calls of torch.autograd.grad are taken for the backward pass of a training step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unvanish.torch.run.derivatives import Derivatives
from unvanish.torch.run.hooks import watching
from unvanish.torch.run.track import Track
from unvanish.torch.run.watch import Watch


class Bench:
    """A network, its optimizer's track, and what is asked about its derivatives."""

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        self.weights = list(self.net.parameters())
        self.optimizer = torch.optim.SGD(self.weights, lr=0.1)
        self.track = Track(self.optimizer, 0, 0)
        self.asked = Derivatives()

    def loss(self) -> Tensor:
        return self.net(torch.ones(3, 2)).pow(2).mean()

    def training(self, inputs: object, *, plain: bool = True, again: bool = False) -> bool:
        return self.asked.loss_of([self.track], self.loss(), inputs, plain=plain, again=again) is not None


def test_a_loss_by_all_weights_is_training() -> None:
    bench = Bench()
    assert bench.training(bench.weights)
    assert bench.training(dict(enumerate(bench.weights)))


def test_derivatives_of_other_kinds_are_not() -> None:
    bench = Bench()
    assert not bench.training(torch.ones(3, 2, requires_grad=True)), "by the inputs"
    assert not bench.training(bench.weights[-1]), "by the last layer alone: a balance of loss terms"
    assert not bench.training([p.detach().requires_grad_() for p in bench.weights]), "by weights of nobody"
    assert not bench.training(bench.weights, plain=False), "times a vector"
    assert bench.asked.others == 4


def test_a_derivative_of_a_derivative_is_not() -> None:
    bench = Bench()
    assert not bench.training(bench.weights, again=True)
    assert not bench.training(bench.weights), "Hessian times vector"
    bench.track.losses.values.append(1.0)
    assert bench.training(bench.weights), "the next step is an ordinary one again"


def test_a_program_that_calls_backward_trains_by_that() -> None:
    bench = Bench()
    assert not bench.asked.backward()
    assert not bench.training(bench.weights)


def trained(steps: int, *, by_grad: bool, analysed: bool = False) -> Watch:
    """What a watch makes of a program that trains one way or the other."""
    torch.manual_seed(0)
    watch = Watch(lambda *_: None, lambda _: None, None)
    with watching(watch):
        bench = Bench()
        if analysed:
            torch.autograd.grad(bench.loss() * 7, bench.weights)
        for _ in range(steps):
            if by_grad:
                gradients = torch.autograd.grad(bench.loss(), iter(bench.weights))
                for weight, gradient in zip(bench.weights, gradients, strict=True):
                    weight.grad = gradient
            else:
                bench.optimizer.zero_grad()
                bench.loss().backward()
            bench.optimizer.step()
    assert watch.broken is None, watch.broken
    return watch


def test_both_ways_of_training_are_seen_alike() -> None:
    (one,), (other,) = trained(25, by_grad=True).roster.tracks, trained(25, by_grad=False).roster.tracks
    assert list(one.losses.values) == list(other.losses.values)
    assert one.record.facts == other.record.facts
    assert [(look.step, look.seen.sites, look.seen.parameters) for look in one.looks] == [
        (look.step, look.seen.sites, look.seen.parameters) for look in other.looks
    ]


def test_an_analysis_before_the_training_is_no_step_of_it() -> None:
    (one,), (other,) = trained(5, by_grad=False, analysed=True).roster.tracks, trained(5, by_grad=False).roster.tracks
    assert list(one.losses.values) == list(other.losses.values)
    assert one.record.facts == other.record.facts


class Bare:
    """A program without an optimizer, whose step is made of what ``grad`` returns."""

    def __init__(self, *, moves: bool = True, by_data: bool = False) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        self.watch = Watch(lambda *_: None, lambda _: None, None)
        self.losses = []
        with watching(self.watch):
            for _ in range(30):
                loss = self.net(torch.ones(3, 2)).pow(2).mean()
                self.losses.append(loss.item())
                gradients = torch.autograd.grad(loss, list(self.net.parameters()))
                with torch.no_grad():
                    for weight, gradient in zip(self.net.parameters() if moves else (), gradients, strict=False):
                        (weight.data if by_data else weight).sub_(0.1 * gradient)
        assert self.watch.broken is None, self.watch.broken


@pytest.mark.parametrize("by_data", [False, True])
def test_a_training_without_an_optimizer_is_seen_from_its_second_step(by_data: bool) -> None:
    bare = Bare(by_data=by_data)
    (track,) = bare.watch.roster.tracks
    assert list(track.losses.values) == pytest.approx(bare.losses[1:-1])
    names = [p.name for p in track.looks[0].seen.parameters]
    assert names == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    assert all(p.log_grad is not None and p.log_update is not None for p in track.looks[-1].seen.parameters)


def test_gradients_of_weights_that_stay_are_no_training() -> None:
    bare = Bare(moves=False)
    assert not bare.watch.roster.tracks
    assert bare.watch.derivatives.others == 30
