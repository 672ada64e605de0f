"""Between two looks events are only counted: the counts must be those of a watch that attends to every event."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unvanish.torch.run import track as track_module
from unvanish.torch.run.hooks import watching
from unvanish.torch.run.tally import Tally
from unvanish.torch.run.track import Track
from unvanish.torch.run.watch import Enough, Watch


class Nested(torch.optim.Optimizer):
    """A step of this is a step of another inside."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__([p for group in inner.param_groups for p in group["params"]], {"lr": math.nan})
        self.inner = inner

    def step(self, closure: None = None) -> None:
        self.inner.step()


class Bench:
    """Three small networks with an optimizer each, the third's nested in another, and what a program does to them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.nets = [nn.Linear(2, 1) for _ in range(3)]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(n.parameters(), lr=1e-3) for n in self.nets]
        self.optimizers[2] = Nested(self.optimizers[2])

    def loss(self, which: int) -> Tensor:
        return self.nets[which](torch.ones(3, 2)).pow(2).mean()

    def train(self, which: int, passes: int) -> None:
        self.optimizers[which].zero_grad()
        for part in range(passes):
            (self.loss(which) * (part + 1)).backward()
        self.optimizers[which].step()

    def nan(self, which: int, passes: int) -> None:
        (self.loss(which) * 0).log().backward()
        self.optimizers[which].zero_grad()
        self.optimizers[which].step()

    def idle(self, which: int, passes: int) -> None:
        """Backward passes without a step, of many losses at once, of a list, and one that raises."""
        for _ in range(passes):
            self.loss(which).backward()
        self.nets[which](torch.ones(3, 2)).backward(torch.ones(3, 1))
        torch.autograd.backward([self.loss(which), self.loss(which)])
        with pytest.raises(RuntimeError):
            torch.ones(()).backward()

    def shared(self, which: int, passes: int) -> None:
        """One loss, the steps of two optimizers."""
        (self.loss(0) + self.loss(1)).backward()
        self.optimizers[0].step()
        self.optimizers[1].step()

    def inner(self, which: int, passes: int) -> None:
        """The nested one alone."""
        self.loss(2).backward()
        self.optimizers[2].inner.step()  # type: ignore[attr-defined]

    def replaced(self, which: int, passes: int) -> None:
        """A new optimizer for the same network."""
        if which < 2:
            self.optimizers[which] = torch.optim.SGD(self.nets[which].parameters(), lr=1e-3)

    def copied(self, which: int, passes: int) -> None:
        """One that was never constructed; it steps on a network of its own."""
        if which < 2:
            self.nets[which], self.optimizers[which] = copy.deepcopy((self.nets[which], self.optimizers[which]))

    def scaled(self, which: int, passes: int) -> None:
        """Under a GradScaler, where a gradient that overflows skips the step."""
        scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
        self.optimizers[which].zero_grad()
        for _ in range(passes):
            scaler.scale(self.loss(which)).backward()
        if passes == 3:
            next(self.nets[which].parameters()).grad.mul_(math.inf)  # type: ignore[union-attr]
        scaler.step(self.optimizers[which])


class Deed(NamedTuple):
    """What a program does: this many times, to this network, with so many backward passes at a time."""

    name: str
    times: int
    which: int
    passes: int


_RARE = ("nan", "idle", "shared", "inner", "replaced", "copied", "scaled")
DEEDS = st.builds(
    Deed,
    st.one_of(st.just("train"), st.sampled_from(_RARE)),
    st.integers(1, 14),
    st.integers(0, 2),
    st.integers(1, 3),
)


@pytest.fixture(autouse=True, scope="module")
def _little_patience() -> Iterator[None]:
    """An optimizer that was made and never steps is soon waited for no more: the tests are quicker for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(track_module, "_DORMANT", WAITING)
        yield


WAITING = 3


def silent(*_: object) -> None:
    """Nobody is told."""


def seen(deeds: list[Deed], limit: int | None = None) -> Watch:
    """What a watch makes of a program."""
    watch = Watch(silent, silent, limit)
    with watching(watch):
        bench = Bench()
        try:
            for deed in deeds:
                action: Callable[[int, int], None] = getattr(bench, deed.name)
                for _ in range(deed.times):
                    action(deed.which, deed.passes)
        except Enough:
            pass
    assert watch.broken is None, watch.broken
    return watch


def told(track: Track) -> tuple[object, ...]:
    """All that a report is made of, but for the looks' contents; NaN as a word, so that it equals itself."""
    losses = ["nan" if math.isnan(value) else value for value in track.losses.values]
    looks = [look.step for look in track.looks]
    return (
        track.name,
        losses,
        looks,
        sorted(track.record.facts),
        track.record.skipped,
        track.nonfinite,
        track.losses.first_bad,
    )


@contextmanager
def attentive() -> Iterator[None]:
    """Every event is attended to: the slow oracle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tally, "relax", silent)
        yield


@settings(max_examples=25, deadline=None)
@given(st.lists(DEEDS, min_size=1, max_size=6), st.one_of(st.none(), st.integers(1, 30)))
def test_only_counting_counts_the_same(deeds: list[Deed], limit: int | None) -> None:
    quick = seen(deeds, limit)
    with attentive():
        slow = seen(deeds, limit)
    assert [told(track) for track in quick.roster.tracks] == [told(track) for track in slow.roster.tracks]
    assert quick.roster.unwatched == slow.roster.unwatched
    repeated = [
        [one.repeats(other) for other in watch.roster.tracks] for watch in (quick, slow) for one in watch.roster.tracks
    ]
    assert repeated[: len(quick.roster.tracks)] == repeated[len(quick.roster.tracks) :]


def attended(deeds: list[Deed]) -> list[str]:
    """The events of a program that were more than counted."""
    events: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("backward_begins", "step_begins", "step_ended"):
            original = getattr(Watch, name)

            def noted(
                self: Watch, *args: object, name: str = name, original: Callable[..., object] = original
            ) -> object:
                events.append(name)
                return original(self, *args)

            patch.setattr(Watch, name, noted)
        seen(deeds)
    return events


def test_what_is_not_looked_at_is_only_counted() -> None:
    deeds = [Deed("train", 600, 0, 1)]
    steps_looked_at = 10  # 0, 1, 2, 5, 10, 20, 50, 100, 200, 500
    events = attended(deeds)
    assert events.count("backward_begins") <= steps_looked_at + WAITING
    assert events.count("step_begins") <= steps_looked_at + WAITING
    assert events.count("step_ended") <= 2 * steps_looked_at + WAITING


def test_between_two_looks_no_module_is_hooked() -> None:
    hooked: list[int] = []

    class Spying(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            hooked.append(len(nn.modules.module._global_forward_hooks))
            return super().forward(x)

    watch = Watch(silent, silent, None)
    with watching(watch):
        net = Spying(2, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        for _ in range(30):
            net(torch.ones(3, 2)).pow(2).mean().backward()
            optimizer.step()
    assert [step for step, hooks in enumerate(hooked) if hooks] == [0, 1, 2, 5, 10, 20]


def test_an_optimizer_that_is_gone_is_not_taken_for_the_next() -> None:
    watch = Watch(silent, silent, None)
    with watching(watch):
        net = nn.Linear(2, 1)
        optimizer: torch.optim.Optimizer | None = torch.optim.SGD(net.parameters(), lr=1e-3)
        for _ in range(12):
            assert optimizer is not None
            net(torch.ones(3, 2)).pow(2).mean().backward()
            optimizer.step()
        kept = id(optimizer)
        assert kept in watch.tally._quiet
        optimizer = None
        assert kept not in watch.tally._quiet


def test_the_losses_of_steps_nobody_counts_are_not_the_next_ones() -> None:
    watch = Watch(silent, silent, None)
    with watching(watch):
        nets = [nn.Linear(2, 1) for _ in range(9)]
        optimizers = [torch.optim.SGD(net.parameters(), lr=1e-3) for net in nets]
        seen_at_first = []
        for which in (0, 8, 8, 0):
            loss = nets[which](torch.ones(3, 2)).pow(2).mean()
            loss.backward()
            optimizers[which].step()
            seen_at_first += [loss.item()] if which == 0 else []
    assert watch.roster.unwatched == 1
    assert list(watch.roster.tracks[0].losses.values) == seen_at_first


def test_passes_without_a_step_do_not_pile_up() -> None:
    watch = Watch(silent, silent, None)
    with watching(watch):
        net = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        for step in range(13):
            for _ in range(10_000 if step == 12 else 1):
                net(torch.ones(3, 2)).pow(2).mean().backward()
            assert len(watch.tally._losses) < 5000
            optimizer.step()
    assert watch.roster.tracks[0].count == 13


def test_an_error_of_ours_leaves_the_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(silent, silent, None)
    with watching(watch):
        net = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        for step in range(14):
            if step == 8:
                monkeypatch.setattr(watch.roster.tracks[0], "losses", None)
                monkeypatch.setattr(watch.tally, "_losses", None)
            optimizer.zero_grad()
            net(torch.ones(3, 2)).pow(2).mean().backward()
            optimizer.step()
    assert watch.broken is not None
    assert "TypeError" in watch.broken
    assert net.weight.grad is not None
