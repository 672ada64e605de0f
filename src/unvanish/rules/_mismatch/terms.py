"""Terms and sums of uneven weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from unvanish import reading
from unvanish.rules import _flows
from unvanish.rules._mismatch.fault import AbstractMismatch, Fault
from unvanish.types import Experiment, Flow, Step

_UNLEARNT = 0.9  # of what the best constant answer gives
_LEARNT = 0.6  # of what the best constant answer gives, without the other terms
_LATE, _TWICE = 100, 2  # steps after which a term that is learnt at all shows it, and looks at it there
_SMALL = 0.2  # of the loss at the start: when it falls, it is the others that do
_FELL = 0.5
_CLASSES = ("cross_entropy", "nll")  # of a small batch with many classes the best constant answer knows too much


def _learnt_alone(flow: Flow) -> tuple[float, str] | None:
    """It stands with the others, and falls where it is trained on alone."""
    made = {one.lever: one for one in flow.experiments}
    whole, alone = made.get("term"), made.get("term-alone")
    if (
        whole is None
        or alone is None
        or not _UNLEARNT < reading.level(whole) < math.inf
        or reading.level(alone) > _LEARNT
    ):
        return None
    return 0.88, (
        f"after {len(whole.losses)} steps on one batch it stands where the best constant answer has it, and with the other "
        f"terms left out the same network takes {100 * (1 - reading.level(alone)):.0f} % off that"
    )


def _falls_without(flow: Flow) -> tuple[float, str] | None:
    """It stands, and the loss falls, in the user's own training, which could not be made again without the others."""
    late = [step.term for step in flow.steps if step.term is not None and step.index >= _LATE]
    fallen, share = reading.trains(flow) or 0.0, flow.loss.term_share
    if (
        flow.experiments
        or flow.loss.term in _CLASSES
        or len(late) < _TWICE
        or min(late) < 1
        or share is None
        or share >= _SMALL
        or fallen < _FELL
    ):
        return None
    return 0.7, (
        f"late in the training it is {late[-1]:.3g} times what the best constant answer gives, although the loss has "
        f"fallen by {100 * fallen:.0f} %"
    )


@dataclass(frozen=True)
class Terms(AbstractMismatch):
    """A sum where a mean is meant, and a term that is not learnt because the others outweigh it."""

    def faults(self, flow: Flow) -> Iterator[Fault]:
        yield from self._summed(flow)
        yield from self._outweighed(flow)

    def _summed(self, flow: Flow) -> Iterator[Fault]:
        smaller = reading.best_lever(flow, "learning-rate", below=1.0)
        if flow.loss.reduction == "sum" and smaller is not None:
            yield Fault(
                0.92, "The loss is summed over the batch, so gradient and step are larger by the number of elements; "
                f"with the learning rate times {smaller.factor:g} the same network learns. Expected: a step that "
                "does not depend on the batch size. Use reduction='mean'.",
                "use reduction='mean'",
            )  # fmt: skip

    def _outweighed(self, flow: Flow) -> Iterator[Fault]:
        """One of several terms is not learnt, and is where it stands alone; or it is not, while the whole falls."""
        proof = _learnt_alone(flow) or _falls_without(flow)
        if proof is not None:
            confidence, seen = proof
            yield Fault(
                confidence, f"The {flow.loss.term} term of the loss is not learnt: {seen}. The other terms outweigh it, and the "
                "loss falls as the network learns to please them. Expected: terms of like weight. Reduce all in the same way "
                "(a sum over elements beside a mean over them is larger by their number), or give the others a smaller "
                "weight, growing from 0.",
                "reduce all terms of the loss in the same way, or weigh the others down", None,
                "Bowman et al. 2016, arXiv:1511.06349, section 3.1; Wang et al. 2021, arXiv:2001.04536 (terms of uneven weight)",
            )  # fmt: skip

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        base = _flows.plain()
        several = replace(base.loss, kind="other", floor=None, term="mse")
        still, done = Experiment("term", 1.0, (1.0,) * 160, 1.0), Experiment("term", 1.0, (0.002,) * 40, 1.0)
        tried = ((_learnt("term"),), (still, replace(still, lever="term-alone")), (done, _learnt("term-alone")))
        made = [replace(base, loss=several, experiments=(*base.experiments, *one)) for one in tried]
        for level, share in ((0.9, 0.05), (1.02, 0.7)):
            one = replace(several, term_share=share)
            made.append(replace(base, loss=one, experiments=(), steps=_looked_at(level), origin="run"))
        return tuple(made)

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        stuck, falling = _flows.plain(stuck=True), _flows.plain()
        summed = replace(stuck, loss=replace(stuck.loss, reduction="sum"))
        loss = replace(stuck.loss, kind="other", floor=None, term="mse")
        tried = (*falling.experiments, Experiment("term", 1.0, (1.0,) * 160, 1.0), _learnt("term-alone"))
        seen = replace(
            falling, loss=replace(loss, term_share=0.05), experiments=(), steps=_looked_at(1.02), origin="run"
        )
        return (_flows.lever(summed, "learning-rate", 0.01), replace(falling, loss=loss, experiments=tried), seen)


def _looked_at(level: float) -> tuple[Step, ...]:
    """A training whose loss falls; looked at, one of its terms has come to this level."""
    looks = {0: 3.0, 100: level, 200: level}
    return tuple(Step(i, 2.3 * math.exp(-i / 50), -1.0, 1e-2, 1e-2, term=looks.get(i)) for i in range(201))


def _learnt(lever: Literal["term", "term-alone"]) -> Experiment:
    return Experiment(lever, 1.0, tuple(math.exp(-step / 12) for step in range(40)), 1.0)
