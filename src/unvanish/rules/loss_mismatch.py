"""loss-mismatch: the loss and what it is given do not fit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from unvanish import reading
from unvanish.rules import _collapse, _feeding, _flows, _terms
from unvanish.types import Evidence, Experiment, Finding, Flow, LossView, Moments, OptimizerView, Site, Snapshot, Step
from unvanish.units import AbstractRule
from unvanish.vocabulary import DISTANCES, Cause

_ERRORS = (*DISTANCES, "cross_entropy", "bce", "bce_with_logits")  # never negative


@dataclass(frozen=True)
class LossMismatch(AbstractRule):
    """The loss gets something else than it expects: probabilities for logits, (n, 1) for (n,), a range it cannot meet.

    Cross-entropy takes raw logits and applies log-softmax itself; a softmax before it squashes all logits into [0, 1],
    so that even a perfect answer keeps a loss of ln(1 + (C-1)/e) and the gradient through the first softmax is small.
    The same holds for a sigmoid before BCEWithLogits.  NLLLoss and KLDivLoss take log-probabilities, over the classes
    and not over the batch; binary cross-entropy takes targets in [0, 1].  Predictions of shape (n, 1) against targets of
    shape (n,) broadcast to (n, n): every prediction is pulled to the mean of all targets.  A view where a permute is meant
    mixes classes with positions, or samples with one another; so does a recurrent layer that takes the batch for
    time.  Targets outside the
    range of the last activation can never be met.  MSE on a saturated sigmoid has slope p(1-p) near zero.  So has
    log(1 - D(G(z))) where D is sure (Goodfellow et al. 2014, section 3).  A sum instead of a mean multiplies the
    gradient, and so the step, by the number of elements; a divergence that is summed beside an error that is averaged
    leaves nothing of the error (a VAE that puts out the mean of all images).

    Cure: hand the loss what its documentation says (logits, log-probabilities, equal shapes), and let the last
    activation fit the targets.
    """

    outside: float = 0.05
    saturated: float = 0.7
    all_saturated: float = 0.95
    flat: float = 5.0  # nats
    looks: int = 4
    stands: float = 1e-5
    trains: float = 0.3
    idle: float = 0.06
    attends: float = 0.5
    cause: ClassVar[Cause] = "loss-mismatch"
    title: ClassVar[str] = "the loss and what it is given do not fit"
    source: ClassVar[str] = (
        "PyTorch documentation of CrossEntropyLoss, BCEWithLogitsLoss, NLLLoss; Goodfellow et al. 2016, 6.2.2"
    )
    remedies: ClassVar[tuple[str, ...]] = (
        "give CrossEntropyLoss and BCEWithLogitsLoss raw logits, NLLLoss log-probabilities",
        "make the shapes of predictions and targets equal",
        "let the range of the last activation hold the targets",
    )

    def check(self, flow: Flow) -> Finding | None:
        return next(self._mismatches(flow), None)

    def _mismatches(self, flow: Flow) -> Iterator[Finding]:
        yield from self._twice(flow)
        yield from self._shapes(flow)
        yield from self._mixed(flow)
        yield from self._over_samples(flow)
        yield from self._over_queries(flow)
        yield from self._constant_output(flow)
        yield from self._signs(flow)
        yield from self._range(flow)
        yield from self._upwards(flow)
        yield from self._flat_loss(flow)
        yield from self._summed(flow)
        yield from self._outweighed(flow)
        yield from self._saturating(flow)
        yield from self._collapsed(flow)

    def _upwards(self, flow: Flow) -> Iterator[Finding]:
        """The training makes worse what it should make better: an error is made as large as can be."""
        turned = flow.optimizer is not None and flow.optimizer.given and flow.optimizer.maximize
        played = flow.others or any(p.reached and p.in_optimizer is False for p in flow.parameters)
        ops = {s.op for s in flow.sites if s.kind == "loss"}
        single = flow.loss.kind in _ERRORS and flow.loss.terms <= 1 and "mul" not in ops  # which may be by a reward
        if single and not played and ((flow.loss.value < 0 and "neg" in ops) != turned):
            what = "the optimizer has maximize=True" if turned else "it has the sign turned"
            yield self._finding(
                flow, 0.93, f"The loss is a {flow.loss.kind} and {what}: every step makes the answers worse. Expected: an error, "
                f"made small. {'Leave out maximize=True' if turned else 'Take the minus away'}.",
                "leave out maximize=True" if turned else "take the minus sign in front of the loss away",
            )  # fmt: skip

    def _twice(self, flow: Flow) -> Iterator[Finding]:
        """An activation that the loss applies itself, or one that it needs and does not get."""
        for confidence, message, remedy in list(_feeding.wrongly_fed(flow)) or _feeding.too_close(flow):
            yield self._finding(flow, confidence, message, remedy)

    def _shapes(self, flow: Flow) -> Iterator[Finding]:
        if flow.loss.broadcast is not None:
            output, target = flow.loss.broadcast
            yield self._finding(
                flow, 0.97, f"Predictions of shape {output} against targets of shape {target} broadcast to "
                f"{(output[0], output[0])}: every prediction is compared with every target, and all are pulled to the mean. "
                "Expected: equal shapes. Use output.squeeze(-1) or target.unsqueeze(-1).",
                "squeeze the output or unsqueeze the target so that shapes are equal",
            )  # fmt: skip
        if flow.loss.reordered is not None and (reading.trains(flow) or 0.0) < self.trains:
            before, after = flow.loss.reordered
            yield self._finding(
                flow, 0.93, f"The network's output of shape {before} is seen as {after} by a view or reshape before the loss. That "
                "moves no numbers: scores of different classes and positions are mixed up. Expected: exchanged axes. Use "
                "permute, transpose or movedim.",
                "exchange axes with permute or transpose, not with view or reshape",
            )  # fmt: skip

    def _mixed(self, flow: Flow) -> Iterator[Finding]:
        """Rows that the loss takes for separate samples read one another."""
        if flow.mixed is not None:
            yield self._finding(
                flow, 0.9, f"The samples of a batch read one another: with another input in one row, other rows of the output "
                f"change, from {flow.mixed} on. To the loss each row is a sample of its own. Expected: rows that depend on "
                "their own input alone. Look there for batch_first=False (the default of nn.LSTM, nn.GRU and attention) on "
                "(batch, time, features), and for a view or reshape that joins the batch with another axis.",
                "set batch_first=True, or exchange axes with transpose or permute, not with view or reshape", flow.mixed,
                "Karpathy 2019, A Recipe for Training Neural Networks (use backprop to chart dependencies)",
            )  # fmt: skip

    def _over_samples(self, flow: Flow) -> Iterator[Finding]:
        """A softmax within the network whose axis is the batch: the only one of that length."""
        size, target = flow.batch_size or 0, flow.loss.target_shape or ()
        along = [
            s for s in flow.sites if s.kind == "softmax" and s.normalized_count == size > 1 and len(s.shape) > 2
            and s.shape[0] == size and s.shape.count(size) == 1
        ]  # fmt: skip
        if along and target[:1] == (size,):
            yield self._finding(
                flow, 0.9, f"The softmax at {along[0].label} runs over the samples of the batch (dim=0 of {along[0].shape}): the weights of "
                "one sample depend on what else is in the batch. Expected: a sum of 1 within each sample, over what it "
                "attends to. Use dim=-1.",
                "let the softmax run within each sample: dim=-1", along[0].label,
            )  # fmt: skip

    def _over_queries(self, flow: Flow) -> Iterator[Finding]:
        """Attention weights that sum to 1 over those who ask, not over what each of them attends to."""
        along = [s for s in flow.sites if s.crossed]
        if along and (reading.trains(flow) or 0.0) < self.attends:
            yield self._finding(
                flow, 0.85, f"The softmax at {along[0].label}, of shape {along[0].shape}, makes the weights sum to 1 along one axis, and the "
                "product with the values sums along another: what each query gets is no average. Expected: weights that "
                "sum to 1 over what a query attends to. Use dim=-1 on scores of queries by keys.",
                "let the softmax run over the keys: dim=-1", along[0].label,
                "Vaswani et al. 2017, arXiv:1706.03762, equation 1",
            )  # fmt: skip

    def _constant_output(self, flow: Flow) -> Iterator[Finding]:
        shape, loss = flow.loss.output_shape, flow.loss
        one = loss.classes == 1 or (loss.feeding == "softmax" and shape is not None and shape[-1:] == (1,))
        if one:
            yield self._finding(
                flow, 0.97, "A softmax over a single output is always 1, so the loss does not depend on the network. Expected: "
                "one output per class (2 for two classes), or a sigmoid with BCE for a single output.",
                "use two outputs, or one output with BCEWithLogitsLoss",
            )  # fmt: skip
        single = [s for s in flow.sites if s.kind == "softmax" and s.op == "softmax" and s.normalized_count == 1]
        if single and not one and not reading.learns(flow):
            yield self._finding(
                flow, 0.95, f"The softmax at {single[0].label} runs over an axis of size 1 of {single[0].shape}: all it puts out is 1, "
                "and no gradient passes. Expected: the axis that holds the alternatives. Choose another dim, or squeeze first.",
                "let the softmax run over the axis of the alternatives: another dim", single[0].label,
            )  # fmt: skip
        rectified = [
            s for s in reading.activations(flow)[-1:] if loss.feeding in ("relu", "relu6") and s.dead is not None
        ]
        if loss.kind in ("cross_entropy", "bce_with_logits") and rectified and not reading.learns(flow):
            yield self._finding(
                flow, 0.9, f"The logits pass a {loss.feeding} before the loss: negative logits become 0 and pass no gradient "
                f"({100 * (rectified[0].dead or 0):.0f} % of the outputs are dead). Expected: the raw output of the last "
                "linear layer. Remove the activation after it.",
                f"remove the {loss.feeding} after the last layer", rectified[0].label,
            )  # fmt: skip

    def _signs(self, flow: Flow) -> Iterator[Finding]:
        """A loss of margins, y * score, that is given 0 for one of the two classes."""
        loss = flow.loss
        if loss.kind in ("hinge", "soft_margin") and loss.target_range is not None and loss.target_range[0] >= 0:
            low, high = loss.target_range
            yield self._finding(
                flow, 0.95, f"Targets lie in [{low:.4g}, {high:.4g}], but a margin loss takes -1 and 1: where the target is 0, the "
                "product with the score is 0, and the sample gives no gradient. Expected: a sign for each sample. Use 2 * target - 1.",
                "give the margin loss targets of -1 and 1: 2 * target - 1",
            )  # fmt: skip

    def _range(self, flow: Flow) -> Iterator[Finding]:
        loss = flow.loss
        if loss.kind in ("bce", "bce_with_logits") and loss.target_range is not None:
            low, high = loss.target_range
            if low < 0 or high > 1:
                yield self._finding(
                    flow, 0.95, f"Targets lie in [{low:.4g}, {high:.4g}], but binary cross-entropy takes probabilities: outside of "
                    "[0, 1] it has no lower bound. Expected: targets of 0 and 1, or between. Scale them, or take another "
                    "loss (MSE, or SoftMarginLoss for -1 and 1).",
                    "scale the targets to [0, 1]",
                )  # fmt: skip
                return
        limits = _feeding.limits(loss)
        if loss.kind not in (*DISTANCES, "bce") or limits is None or loss.target_range is None:
            return
        low, high = loss.target_range
        beyond = max(limits[0] - low, high - limits[1], 0.0)
        if beyond > self.outside * max(high - low, 1e-12):
            yield self._finding(
                flow, 0.93, f"Targets lie in [{low:.4g}, {high:.4g}], but the last activation ({loss.feeding}) can only put out "
                f"[{limits[0]:g}, {limits[1]:g}]. Expected: a range that holds the targets. Remove the last activation, or "
                "scale the targets into its range.",
                f"remove the {loss.feeding} at the output, or scale the targets",
            )  # fmt: skip

    def _flat_loss(self, flow: Flow) -> Iterator[Finding]:
        loss = flow.loss
        if loss.kind in DISTANCES and (loss.output_saturated or 0) > self.saturated and not reading.learns(flow):
            yield self._finding(
                flow, 0.9, f"{100 * (loss.output_saturated or 0):.0f} % of the outputs of the last {loss.feeding} are saturated "
                f"and the loss is {loss.kind}: its gradient carries the factor p(1-p), near zero even where the answer is "
                "wrong. Expected: a loss that undoes the saturation. Use BCEWithLogits or cross-entropy on the logits.",
                "use BCEWithLogitsLoss or CrossEntropyLoss on the logits",
            )  # fmt: skip

    def _summed(self, flow: Flow) -> Iterator[Finding]:
        smaller = reading.best_lever(flow, "learning-rate", below=1.0)
        if flow.loss.reduction == "sum" and smaller is not None:
            yield self._finding(
                flow, 0.92, "The loss is summed over the batch, so gradient and step are larger by the number of elements; "
                f"with the learning rate times {smaller.factor:g} the same network learns. Expected: a step that "
                "does not depend on the batch size. Use reduction='mean'.",
                "use reduction='mean'",
            )  # fmt: skip

    def _outweighed(self, flow: Flow) -> Iterator[Finding]:
        """One of several terms is not learnt, and is where it stands alone; or it is not, while the whole falls."""
        proof = _terms.learnt_alone(flow) or _terms.falls_without(flow)
        if proof is not None:
            confidence, seen = proof
            yield self._finding(
                flow, confidence, f"The {flow.loss.term} term of the loss is not learnt: {seen}. The other terms outweigh it, and the "
                "loss falls as the network learns to please them. Expected: terms of like weight. Reduce all in the same way "
                "(a sum over elements beside a mean over them is larger by their number), or give the others a smaller "
                "weight, growing from 0.",
                "reduce all terms of the loss in the same way, or weigh the others down", None,
                "Bowman et al. 2016, arXiv:1511.06349, section 3.1; Wang et al. 2021, arXiv:2001.04536 (terms of uneven weight)",
            )  # fmt: skip

    def _saturating(self, flow: Flow) -> Iterator[Finding]:
        """A loss without a known bottom that reads a sigmoid which the other player has saturated, as log(1 - D(G(z)))."""
        if flow.loss.floor is not None or not flow.snapshots or (reading.trains(flow) or 0.0) >= self.idle:
            return
        flat = self._flat_sigmoid(flow.snapshots[-1].sites)
        lost = _lost(flat)
        last = reading.largest_updates(flow)[-1:]
        still = any(update < self.stands for update in last) or self._flat_sigmoid(flow.sites)
        late = [_lost(self._flat_sigmoid(look.sites)) for look in flow.snapshots[-self.looks :]]
        loses = len(late) == self.looks and min(late) > self.flat and _rises(flow.steps)
        if lost > self.flat and (still or loses):
            yield self._finding(
                flow, 0.85, f"The loss reads {flat[0].label}, a sigmoid that is saturated for nearly all samples by now: its slope "
                f"leaves {math.exp(-lost):.1g} of the gradient. Expected: a loss whose gradient is large "
                "where the answer is wrong. Use its non-saturating form, -log D(G(z)) in place of log(1 - D(G(z))), on the "
                "logits: binary_cross_entropy_with_logits.",
                "use the non-saturating loss: binary_cross_entropy_with_logits against the labels you want to be seen",
                flat[0].label,
            )  # fmt: skip

    def _collapsed(self, flow: Flow) -> Iterator[Finding]:
        """A loss that compares samples with one another, and is pleased if they are all alike."""
        seen = _collapse.collapsed(flow)
        if seen is not None:
            yield self._finding(
                flow, 0.8, f"The outputs of all samples become the same: at {seen.site.label} what differs between samples fell from "
                f"{seen.before:.2g} to {seen.after:.1g} of the output, and the loss stands at {flow.steps[-1].loss:.3g}. So far the loss "
                "rewards outputs that lie close together more than outputs that lie where they should. Expected: a loss "
                "that no constant output pleases. Normalise the outputs, compare with less hard negatives (semi-hard, or all "
                "pairs), and take a smaller learning rate; without negatives stop the gradient on one side.",
                "normalise the embeddings, and mine semi-hard negatives or average over all pairs", seen.site.label,
                "Schroff et al. 2015, arXiv:1503.03832, section 3.2; Chen and He 2021, arXiv:2011.10566 (collapse)",
            )  # fmt: skip

    def _flat_sigmoid(self, sites: tuple[Site, ...]) -> list[Site]:
        """The last activation, if it is a saturated sigmoid that nothing but the loss reads."""
        last = [s for s in sites if s.kind == "activation"][-1:]
        read = all(s.kind == "loss" for s in sites if last and s.order > last[0].order)
        return [s for s in last if s.op == "sigmoid" and (s.saturated or 0.0) >= self.all_saturated and read]

    def _finding(
        self,
        flow: Flow,
        confidence: float,
        message: str,
        remedy: str,
        place: str | None = None,
        source: str | None = None,
    ) -> Finding:
        where = tuple(dict.fromkeys(name for name in ("loss", place, flow.loss.feeding_name) if name))
        evidence = (
            Evidence("first loss", flow.loss.value, "", _normal(flow.loss.floor)),
            *reading.learning_evidence(flow),
        )
        return Finding(self.cause, where, confidence, "high", evidence, message, (remedy,), source or self.source)

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        base = _flows.plain()
        fed = [
            ("cross_entropy", "linear"),
            ("cross_entropy", "log_softmax"),
            ("nll", "log_softmax"),
            ("kl_div", "log_softmax"),
            ("bce", "sigmoid"),
        ]
        flows = [replace(base, loss=replace(base.loss, kind=kind, feeding=op)) for kind, op in fed]
        flows.append(replace(base, loss=replace(base.loss, feeding="tanh", classes=2)))
        flows.append(replace(base, loss=replace(base.loss, feeding="clamp", limits=(-50.0, 50.0))))
        flows.append(replace(base, loss=replace(base.loss, kind="other", terms=2, parts=tuple(fed))))
        flows.append(replace(base, loss=replace(base.loss, kind="bce_with_logits", target_range=(0.0, 1.0))))
        flows.append(replace(base, loss=replace(base.loss, kind="hinge", target_range=(-1.0, 1.0))))
        flows.append(replace(base, loss=replace(base.loss, normalized_axis=1, output_shape=(64, 10))))
        inside = replace(
            base.loss, kind="mse", feeding="sigmoid", target=Moments(64, 0.5, 0.4), target_range=(0.0, 1.0)
        )
        several = replace(base.loss, kind="other", floor=None, term="mse")
        still, done = Experiment("term", 1.0, (1.0,) * 160, 1.0), Experiment("term", 1.0, (0.002,) * 40, 1.0)
        for made in ((_learnt("term"),), (still, replace(still, lever="term-alone")), (done, _learnt("term-alone"))):
            flows.append(replace(base, loss=several, experiments=(*base.experiments, *made)))
        for level, share in ((0.9, 0.05), (1.02, 0.7)):
            one = replace(several, term_share=share)
            flows.append(replace(base, loss=one, experiments=(), steps=_looked_at(level), origin="run"))
        flows.append(cls._attending(6))
        weights = replace(cls._attending(6).sites[-1], crossed=True)
        flows.append(replace(base, sites=(*base.sites, weights)))
        stuck = _flows.plain(stuck=True)
        for begun in (base, stuck, _flows.lever(_beginning(stuck), "learning-rate", 10.0)):
            flows.append(_flows.lever(begun, "logits", 10.0))
        for kind, end, stands in (("other", 0.1, True), ("other", 1e-5, False), ("mse", 1e-5, True)):
            flows.append(_growing_alike(replace(base, loss=replace(base.loss, kind=kind)), end, stands=stands))
        critic = (_flows.parameter("critic.0.weight", in_optimizer=False, reached=True),)
        return (
            *flows,
            replace(base, loss=inside),
            replace(cls._negative("neg"), parameters=critic),
            cls._negative("mul"),
        )

    @staticmethod
    def _negative(op: str) -> Flow:
        """A cross-entropy below zero, by a minus sign or by a factor."""
        base = _flows.plain()
        sites = (*base.sites, Site("nll", op, "loss", len(base.sites), ()))
        return replace(base, loss=replace(base.loss, value=-2.3, floor=-2.3), sites=sites)

    @staticmethod
    def _attending(count: int) -> Flow:
        """Attention weights of 64 samples with six places, which sum to 1 over so many."""
        base = _flows.plain(loss=LossView(2.3, "cross_entropy", 2.3, 10, target_shape=(64,)))
        weights = Site("encoder:softmax", "softmax", "softmax", 99, (64, 6, 6), normalized_count=count)
        return replace(base, sites=(*base.sites, weights))

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        base = _flows.plain(stuck=True)
        loss = base.loss
        changed = (
            replace(loss, feeding="softmax"),
            replace(loss, kind="bce_with_logits", feeding="sigmoid"),
            replace(loss, kind="nll", feeding="softmax"),
            replace(loss, kind="kl_div", feeding="softmax"),
            replace(loss, kind="mse", broadcast=((64, 1), (64,))),
            replace(loss, kind="mse", feeding="sigmoid", target_range=(-2.0, 3.0)),
            replace(loss, kind="mse", feeding="sigmoid", output_saturated=0.95),
            replace(loss, kind="bce_with_logits", target_range=(-1.0, 1.0)),
            replace(loss, kind="hinge", target_range=(0.0, 1.0)),
            replace(loss, kind="other", terms=2, parts=(("mse", "linear"), ("cross_entropy", "softmax"))),
            replace(loss, feeding="linear", normalized_axis=0, output_shape=(64, 10)),
            replace(loss, feeding="tanh"),
            replace(loss, feeding="clamp", limits=(-1.0, 1.0)),
            replace(loss, kind="mse", feeding="hardtanh", limits=(-1.0, 1.0), target_range=(-2.0, 3.0)),
        )
        sure = Site(
            "critic.3", "sigmoid", "activation", 9, (64, 1), log_grad_out=-2.0, log_grad_in=-11.5, reference=math.log(0.25),
            saturated=1.0,
        )  # fmt: skip
        still = tuple(Step(i, -0.001, -8.0, 1e-7, 1e-7) for i in range(60))
        player = replace(
            base, loss=LossView(-0.1), steps=still, experiments=(), snapshots=(Snapshot(50, (sure,), base.parameters),)
        )
        sure_early = tuple(Snapshot(step, (sure,), base.parameters) for step in (5, 10, 20, 50))
        outplayed = replace(
            player, loss=LossView(-0.6), snapshots=sure_early,
            steps=tuple(Step(i, -0.6 * math.exp(-i / 5), -5.0, 1e-3, 1e-2) for i in range(60)),
        )  # fmt: skip
        summed = _flows.lever(replace(base, loss=replace(loss, reduction="sum")), "learning-rate", 0.01)
        alone = Site("choose", "softmax", "softmax", 99, (32, 6, 1), normalized_count=1)
        constant = replace(base, sites=(*base.sites, alone))
        falling = _flows.plain()
        outweighed = replace(
            falling, loss=replace(loss, kind="other", floor=None, term="mse"),
            experiments=(*falling.experiments, Experiment("term", 1.0, (1.0,) * 160, 1.0), _learnt("term-alone")),
        )  # fmt: skip
        mixed = replace(_flows.plain(), mixed="lstm")
        crossed = replace(base, sites=(*base.sites, replace(alone, shape=(32, 6, 6), normalized_count=6, crossed=True)))
        close = _flows.lever(_beginning(base), "logits", 10.0)
        small = replace(outweighed.loss, term_share=0.05)
        trained = replace(falling, loss=small, experiments=(), steps=_looked_at(1.02), origin="run")
        alike = _growing_alike(replace(_flows.plain(), loss=replace(loss, kind="other", floor=None)), 1e-5, stands=True)
        return (
            *(replace(base, loss=one) for one in changed),
            replace(base, optimizer=OptimizerView("SGD", (0.1,), maximize=True)),
            cls._negative("neg"),
            cls._attending(64),
            player,
            outplayed,
            summed,
            constant,
            outweighed,
            mixed,
            crossed,
            close,
            trained,
            alike,
        )


def _lost(sites: Sequence[Site]) -> float:
    """Nats of the gradient that the flattest of these activations takes, all where none arrives from a loss at its end."""
    return max((math.inf if s.log_grad_out == -math.inf else s.saturation_loss or 0.0 for s in sites), default=0.0)


def _rises(steps: Sequence[Step]) -> bool:
    """Does the loss end above where it began?"""
    fifth = max(1, len(steps) // 5)
    return bool(steps) and statistics.median(step.loss for step in steps[-fifth:]) > steps[0].loss


def _growing_alike(flow: Flow, end: float, *, stands: bool) -> Flow:
    """The loss compares all pairs; from look to look less differs between samples, down to ``end``; it stands or falls."""
    pairs = Site("", "sub", "loss", len(flow.sites), (64, 64, 32))
    looks = []
    for k in range(6):
        moments = Moments(2048, 0.5, 0.0, 0.35 * (end / 0.7) ** (k / 5))
        looks.append((*(replace(s, forward=moments) for s in flow.sites), pairs))
    later = tuple(Snapshot(5 * k, sites, flow.parameters) for k, sites in enumerate(looks) if k)
    steps = tuple(
        replace(step, loss=0.5 + (0.1 * 0.8**i if stands else 0.01 * (30 - i))) for i, step in enumerate(flow.steps)
    )
    return replace(flow, sites=looks[0], snapshots=later, steps=steps)


def _beginning(flow: Flow) -> Flow:
    """Learning one batch by heart ends a third of the way."""
    third = replace(flow.experiments[0], losses=tuple(_flows.FLOOR * (1 - 0.33 * min(1.0, i / 10)) for i in range(40)))
    return replace(flow, experiments=(third,))


def _looked_at(level: float, time: float = 50.0) -> tuple[Step, ...]:
    """A training whose loss falls in this many steps; looked at, one of its terms has come to this level."""
    looks = {0: 3.0, 100: level, 200: level}
    return tuple(Step(i, 2.3 * math.exp(-i / time), -1.0, 1e-2, 1e-2, term=looks.get(i)) for i in range(201))


def _learnt(lever: Literal["term", "term-alone"]) -> Experiment:
    return Experiment(lever, 1.0, tuple(math.exp(-step / 12) for step in range(40)), 1.0)


def _normal(floor: float | None) -> str:
    return "falling" if floor is None else f"near {floor:.4g} (guessing), then below"
