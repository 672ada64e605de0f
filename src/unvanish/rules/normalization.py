"""normalization: missing, over too few elements, or in a plain stack too deep for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from unvanish import reading
from unvanish.rules import _flows, _words
from unvanish.types import Evidence, Finding, Flow, Moments, Site
from unvanish.units import AbstractRule
from unvanish.vocabulary import Cause

_AVERAGES = ("mean", "avg_pool2d", "avg_pool1d", "avg_pool3d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
_WEIGHED = ("linear", "convolution", "recurrent", "attention")
_ROOTS = ("sqrt", "rsqrt", "std")


@dataclass(frozen=True)
class Normalization(AbstractRule):
    """A normalisation takes its statistics over too few elements, is missing in a residual net, or stacks too deep.

    Over a single element the normalised value is always zero: the layer puts out its bias and passes no gradient
    (LayerNorm or InstanceNorm of size 1, GroupNorm with one value per group).  Over two, only a sign is left
    (BatchNorm with batch size 2, LayerNorm over two features).  An average right after InstanceNorm or LayerNorm is the same for every sample.
    Residual blocks without any normalisation add up: the stream doubles with every block and the gradient with it.  And
    BatchNorm in a plain stack without skips makes gradients grow by sqrt(pi / (pi - 1)) = 1.21 per ReLU layer, 1e8 over
    100 layers.

    Cure: larger batches, or LayerNorm / GroupNorm over more elements; a norm at the entry of each residual branch (or a
    zero-initialised last layer); skips around normalised layers in deep stacks.
    """

    too_few: int = 2
    few: int = 4
    stream_growth: float = math.log(1e3)
    told_apart: float = 1e-4
    cause: ClassVar[Cause] = "normalization"
    title: ClassVar[str] = "normalisation too small, missing, or stacked too deep"
    source: ClassVar[str] = "Ioffe and Szegedy 2015, arXiv:1502.03167; Yang et al. 2019, arXiv:1902.08129 (explosion)"
    remedies: ClassVar[tuple[str, ...]] = (
        "too few elements: a larger batch, or LayerNorm / GroupNorm over more elements",
        "missing in a residual net: LayerNorm at the entry of each branch, or a zero last layer",
        "too deep a plain stack: residual connections",
    )

    def check(self, flow: Flow) -> Finding | None:
        return (
            self._few_elements(flow)
            or self._averaged_away(flow)
            or self._growing_stream(flow)
            or self._plain_stack(flow)
        )

    def _few_elements(self, flow: Flow) -> Finding | None:
        counted = [s for s in flow.sites if s.kind == "normalization" and s.normalized_count is not None]
        single = [s for s in counted if s.normalized_count == 1]
        limit = self.too_few if reading.learns(flow) else self.few
        small = single or [s for s in counted if s.op == "batch_norm" and (s.normalized_count or 99) <= limit]
        small = small or [s for s in counted if s.normalized_count == self.too_few and not reading.learns(flow)]
        if not small or ((reading.trains(flow) or 0) > 0.3 and not single):
            return None
        count = small[0].normalized_count or 0
        effect = "the result is always 0 and passes no gradient" if count == 1 else "little more than a sign is left"
        batch = small[0].op == "batch_norm"
        cure = "a larger batch, or LayerNorm / GroupNorm" if batch else "fewer groups or another axis, so that it runs"
        return self._finding(
            flow, small, 0.95 if single else 0.85, Evidence("elements per statistic", count, "", "16 or more"),
            f"{small[0].op} at {small[0].label} takes mean and variance over {_words.count(count, 'element')}: {effect}. "
            f"Expected: 16 or more. Use {cure} over more elements.",
            ("use a larger batch", "or LayerNorm / GroupNorm over more elements") if batch
            else ("normalise over more elements: fewer groups, or a wider axis", "or leave this normalisation out"),
        )  # fmt: skip

    def _averaged_away(self, flow: Flow) -> Finding | None:
        """A mean over what was normalised to mean 0 is the same for every sample."""
        if reading.learns(flow):
            return None
        norms = {s.order: s for s in flow.sites if s.kind == "normalization"} | _by_hand(flow)
        means = [s for s in flow.sites if s.op in _AVERAGES and any(order in norms for order in s.inputs)]
        for mean in means:
            told = [s.forward.separation for s in flow.sites if mean.order in s.inputs and s.forward is not None]
            if not told or any(one is None or one > self.told_apart for one in told):
                continue
            (norm,) = [norms[order] for order in mean.inputs if order in norms][:1]
            return self._finding(
                flow, [norm, mean], 0.92, Evidence("samples told apart after the mean", told[0] or 0.0, "", "above 0.05"),
                f"{mean.label} averages what {norm.label} has just normalised to mean 0 for each sample: the result is the same "
                "for all samples, and no gradient passes. Expected: an average over something that the normalisation left "
                "free. Put an activation in between, normalise over the batch (BatchNorm), or take the mean first.",
                ("put an activation between the normalisation and the mean", "or BatchNorm in its place"),
            )  # fmt: skip
        return None

    def _growing_stream(self, flow: Flow) -> Finding | None:
        merges = [s for s in flow.sites if s.kind == "merge" and s.op == "add" and len(s.inputs) > 1]
        rms = [s.forward.rms for s in merges if s.forward is not None and s.forward.rms > 0]
        trains = reading.learns(flow) and reading.improves(flow)  # not only one batch by heart
        if reading.normalized(flow) or len(rms) < 3 or trains:
            return None
        growth = math.log(rms[-1] / rms[0]) if all(map(math.isfinite, rms)) else math.inf
        if growth < self.stream_growth or not self._residual(flow, merges):
            return None
        return self._finding(
            flow, merges, 0.9, Evidence("growth of the residual stream", math.exp(min(growth, 700)), "x", "below 10"),
            f"The residual stream grows {math.exp(min(growth, 700)):.2g} times over {len(merges)} blocks, and there is no "
            "normalisation. Expected: a stream of steady scale. Put a LayerNorm or BatchNorm at the entry of each branch, or "
            "start each branch at zero.",
            ("normalise the entry of each branch", "initialise the last layer of each branch with zeros"),
        )  # fmt: skip

    @staticmethod
    def _residual(flow: Flow, merges: list[Site]) -> bool:
        """Merges that add a branch to its own input, not time steps of one recurrent weight, nor two weighted branches."""
        uses = [s.parameter for s in reading.body(flow) if s.parameter is not None]
        below, earlier = reading.below(flow.sites), {merge.order for merge in merges}
        ends = [
            {
                reading.descend(one, below, lambda site: site.order in earlier or site.kind in _WEIGHED).order
                for one in below[merge.order]
            }
            for merge in merges[1:]
        ]
        skips = [one for one in ends if not one.isdisjoint(earlier)]  # an earlier merge with no weight in between
        return len(set(uses)) > len(uses) / 2 and len(merges) >= 3 and 2 * len(skips) >= len(merges) - 1

    def _plain_stack(self, flow: Flow) -> Finding | None:
        norms = [s for s in flow.sites if s.kind == "normalization"]
        fall = reading.fall(flow)
        enough = len(norms) >= 10 and 2 * len(norms) >= len(reading.body(flow))
        if not enough or fall is None or fall > -math.log(1e3) or reading.learns_promptly(flow):
            return None
        if reading.plain_depth(flow) < 10:
            return None
        return self._finding(
            flow, norms, 0.85, Evidence("gradient growth per normalised layer", math.exp(-fall / len(norms)), "x", "1.0"),
            f"The gradient grows {math.exp(-fall / len(norms)):.3g} times with each of {len(norms)} normalised layers in a plain "
            "stack, which no initialisation can change. Expected: 1.0, which normalised layers only have with skips. Add "
            "residual connections, or drop the normalisation and initialise for the depth.",
            ("add residual connections", "drop the normalisation and initialise for this depth"),
        )  # fmt: skip

    def _finding(
        self,
        flow: Flow,
        sites: list[Site],
        confidence: float,
        evidence: Evidence,
        message: str,
        remedies: tuple[str, ...],
    ) -> Finding:
        proof = (evidence, *reading.learning_evidence(flow))
        return Finding(self.cause, reading.names(sites), confidence, "high", proof, message, remedies, self.source)

    @classmethod
    def healthy(cls) -> tuple[Flow, ...]:
        norm = Site("norm", "batch_norm", "normalization", 0, (64, 32), log_grad_out=0.0, normalized_count=64)
        base = _flows.plain()
        return (
            base,
            replace(base, sites=(norm, *base.sites)),
            replace(base, sites=(replace(norm, op="layer_norm", normalized_count=2), *base.sites)),
            _residual_net(growth=1.1, stuck=False),
            _pooled_net(separation=0.4),
            _pooled_by_hand(separation=0.4),
        )

    @classmethod
    def sick(cls) -> tuple[Flow, ...]:
        one = Site("norm", "layer_norm", "normalization", 0, (64, 1), log_grad_out=0.0, normalized_count=1)
        base = _flows.plain(stuck=True)
        return (
            replace(base, sites=(one, *base.sites)),
            replace(base, sites=(replace(one, op="batch_norm", normalized_count=2), *base.sites)),
            replace(base, sites=(replace(one, normalized_count=2), *base.sites)),
            _residual_net(growth=4.0, stuck=True),
            _pooled_net(separation=3e-7),
            _pooled_by_hand(separation=3e-7),
        )


def _by_hand(flow: Flow) -> dict[int, Site]:
    """Results of a division by a standard deviation, scaled and shifted or not, by order."""
    below = reading.below(flow.sites)
    found: dict[int, Site] = {}
    for site in flow.sites:
        divided = site.op in ("div", "mul") and any(one.op in _ROOTS for one in below[site.order])
        scaled = site.kind == "other" and site.op in ("mul", "add") and any(s.order in found for s in below[site.order])
        if divided or scaled:
            found[site.order] = site
    return found


def _pooled_net(separation: float) -> Flow:
    """Normalised features are averaged; the head still tells samples apart by so much."""
    base = _flows.plain(stuck=True)
    behind = (
        Site("norm", "batch_norm", "normalization", 100, (64, 32, 8), log_grad_out=0.0, normalized_count=8),
        Site("norm:mean", "mean", "other", 101, (64, 32), inputs=(100,), log_grad_out=0.0),
        Site("head", "linear", "linear", 102, (64, 10), inputs=(101,), log_grad_out=0.0,
             forward=Moments(640, 1.0, 0.0, separation)),
    )  # fmt: skip
    return replace(base, sites=(*base.sites, *behind))


def _pooled_by_hand(separation: float) -> Flow:
    """The same with a normalisation of plain ops: x / sqrt(variance) + shift."""
    pooled = _pooled_net(separation)
    root = Site("norm", "sqrt", "other", 98, (64, 32, 1), log_grad_out=0.0)
    ratio = Site("norm", "div", "merge", 99, (64, 32, 8), inputs=(97, 98), log_grad_out=0.0)
    shifted = Site("norm", "add", "other", 100, (64, 32, 8), inputs=(99,), log_grad_out=0.0)
    return replace(pooled, sites=(*pooled.sites[:-3], root, ratio, shifted, *pooled.sites[-2:]))


def _residual_net(growth: float, stuck: bool) -> Flow:
    """A residual net without normalisation whose stream grows by ``growth`` with each block."""
    base = _flows.plain(stuck=stuck)
    merges = tuple(
        Site(f"blocks.{i}:add", "add", "merge", 100 + i, (64, 32), inputs=(2 * i, 99 + i),
             forward=Moments(2048, growth**i, 0.0, 0.5 * growth**i), log_grad_out=0.0)
        for i in range(8)
    )  # fmt: skip
    return replace(base, sites=(*base.sites, *merges))
