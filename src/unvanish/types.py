"""Every noun of unvanish: frozen plain data, standard library only.

A stage of the pipeline receives the previous stage's value and returns one of these.  All logarithms are
natural (nats).  Three things are kept apart everywhere: ``None`` is "not observed", ``-inf`` is "exactly
zero", NaN is "not a number was measured".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from unvanish import serialize
from unvanish.vocabulary import Cause, Kind, Severity

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Moments:
    """One tensor in a few numbers.

    ``batch_std`` is the root mean square over features of the standard deviation over the batch: what still
    tells one sample from another.
    """

    count: int
    rms: float
    mean: float
    batch_std: float | None = None
    max_abs: float | None = None
    nonfinite: int = 0

    @property
    def separation(self) -> float | None:
        """Share of the signal that differs between samples, std over the batch / rms (0 = all samples alike)."""
        if self.batch_std is None or not math.isfinite(self.rms):
            return None
        return self.batch_std / self.rms if self.rms > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Site:
    """One operation of the network that carries data, at one call.

    ``log_grad_out`` is ln ||dL/d output||_2 and ``log_grad_in`` ln ||dL/d data input||_2.  ``reference`` is the
    ln of the best small-signal slope of the activation: its own for an activation, that of the activation it
    feeds for a linear or convolution site (0 where it feeds none).  ``inputs`` are the orders of the sites
    whose outputs it reads; ``depth`` is the number of sites on the longest path up to here.  ``nonfinite_gradient``
    counts the NaN and Inf in the gradient that arrives.  ``normalized_count``: over how many elements a normalisation
    takes its statistics, or a softmax sums to 1; ``saturated``: share of elements on a flat part, or of one-hot rows.
    ``custom``: its derivative is the user's own code.
    """

    name: str
    op: str
    kind: Kind
    order: int
    shape: tuple[int, ...]
    dtype: str = "float32"
    depth: int = 0
    call: int = 0
    inputs: tuple[int, ...] = ()
    parameter: str | None = None
    forward: Moments | None = None
    log_grad_out: float | None = None
    log_grad_in: float | None = None
    reference: float | None = None
    dead: float | None = None
    saturated: float | None = None
    zero_gradient: float | None = None
    nonfinite_gradient: int = 0
    normalized_count: int | None = None
    custom: bool = False

    @property
    def label(self) -> str:
        """The place as a user would say it: the module's name, or the op inside the nearest module."""
        return self.name or f"({self.op})"

    @property
    def log_gain(self) -> float | None:
        """Backward log-gain, ln(||dL/d input|| / ||dL/d output||); None where one of the two was not observed."""
        if self.log_grad_in is None or self.log_grad_out is None:
            return None
        if not math.isfinite(self.log_grad_out) or math.isnan(self.log_grad_in):
            return None
        return self.log_grad_in - self.log_grad_out

    @property
    def saturation_loss(self) -> float | None:
        """S = A_ref - A: nats lost by saturation or death of this activation."""
        gain = self.log_gain
        if self.kind != "activation" or gain is None or self.reference is None:
            return None
        return self.reference - gain

    @property
    def weight_loss(self) -> float | None:
        """B = -A_ref - M: nats lost because these weights are below critical for the activation they feed."""
        gain = self.log_gain
        if self.kind not in ("linear", "convolution") or gain is None or self.reference is None:
            return None
        return -self.reference - gain


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its gradient, weight and real update, and how it hangs in graph and optimizer.

    ``reached`` = it is a leaf of the loss's graph; ``used`` = its module ran in the forward pass (None: not
    known); ``registered`` = ``model.named_parameters()`` has it; ``unchanged`` = share of elements bitwise
    equal after one optimizer step; ``duplicate_*`` = share of output units whose row equals another unit's.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    requires_grad: bool = True
    registered: bool = True
    in_optimizer: bool | None = None
    used: bool | None = None
    reached: bool = True
    log_grad: float | None = None
    log_weight: float | None = None
    log_update: float | None = None
    unchanged: float | None = None
    zero_gradient: float | None = None
    duplicate_rows: float | None = None
    duplicate_gradient_rows: float | None = None
    constant: bool = False

    @property
    def module(self) -> str:
        """Path of the module that has it; its own name where that is the network itself."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def log_update_ratio(self) -> float | None:
        """ln(||update|| / ||weight||) of one real optimizer step."""
        if self.log_update is None or self.log_weight is None or self.log_weight == -math.inf:
            return None
        return self.log_update - self.log_weight


@dataclass(frozen=True, slots=True)
class TimeProfile:
    """The gradient over the time steps of one recurrent layer: ln ||dL/dx_t||_2, first step first.

    ``padded`` = trailing steps whose gradient is exactly zero (padding looks so too); ``injected`` = the time
    steps, as a share of all, at which the loss reads this layer's output directly (1 for a language model);
    ``log_state_grads`` = ln ||(dL/dh_t, dL/dc_t)||_2 where the layer's cell could be stepped exactly, else empty.
    """

    name: str
    op: str
    log_grads: tuple[float, ...]
    padded: int = 0
    injected: float | None = None
    log_state_grads: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class LossView:
    """What the loss reads and what a predictor that ignores its input would reach on the same targets.

    ``kind`` is the framework's loss op ("cross_entropy", "nll", "mse", "l1", "smooth_l1", "huber", "bce",
    "bce_with_logits", "kl_div", "hinge", "other"); ``floor`` the best loss of a constant prediction (class prior, mean,
    median); ``feeding`` the op whose output the loss reads ("softmax", "sigmoid", "relu", "linear"...);
    ``reduction`` "mean", "sum", "none" or None; ``broadcast`` two shapes that silently broadcast to a larger
    one inside the loss; ``requires_grad`` = backward from it leads anywhere; ``parts`` = (kind, feeding op) of every
    term where there are several; ``normalized_axis`` = the axis over which a softmax that the loss reads sums to 1;
    ``reordered`` = the shapes before and after a view that exchanges axes, where only a permute may; ``term`` = the
    kind of the only one of several terms whose constant prediction is known, None where there is no such one;
    ``term_level`` = what it gives, in units of what that prediction would; ``term_share`` = what it gives beside all
    terms (without a factor that the user put on it; None where it is reduced by hand); ``limits`` = between which the
    program itself keeps what the loss reads (clamp, hardtanh); ``crossed`` = the shape of a softmax on the way that
    sums to 1 along one axis, while the matrix product that reads it sums along another.
    """

    value: float
    kind: str = "other"
    floor: float | None = None
    classes: int | None = None
    feeding: str | None = None
    feeding_name: str | None = None
    reduction: str | None = None
    broadcast: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    output: Moments | None = None
    output_shape: tuple[int, ...] | None = None
    output_saturated: float | None = None
    target: Moments | None = None
    target_range: tuple[float, float] | None = None
    target_shape: tuple[int, ...] | None = None
    requires_grad: bool = True
    terms: int = 1
    parts: tuple[tuple[str, str], ...] = ()
    normalized_axis: int | None = None
    reordered: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    term: str | None = None
    term_level: float | None = None
    term_share: float | None = None
    limits: tuple[float, float] | None = None
    crossed: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class InputView:
    """One input tensor of the network. ``feature_spread`` = largest / smallest nonzero std over its features."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    moments: Moments | None = None
    feature_spread: float | None = None
    largest_feature_rms: float | None = None
    normalized_first: bool = False


@dataclass(frozen=True, slots=True)
class OptimizerView:
    """The user's optimizer: class name, learning rates of its groups, eps, weight decay, the momentum of plain SGD.

    ``maximize``: it makes the loss larger.
    """

    name: str
    learning_rates: tuple[float, ...]
    eps: float | None = None
    weight_decay: float = 0.0
    adaptive: bool = False
    given: bool = True
    maximize: bool = False
    momentum: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of the rehearsal, or of the user's own training.

    ``clip`` = ||gradient at the step|| / ||gradient after backward|| (1 = not clipped); ``update_ratio`` the
    median over parameters of ||update||/||weight||; ``scale`` the loss scale of a GradScaler; ``kept`` the share of
    the gradient that stems from before the previous step (0 where ``zero_grad()`` was called; None: not looked at);
    ``rate`` the largest learning rate of its groups; ``term`` that step's ``LossView.term_level``.
    """

    index: int
    loss: float
    log_grad: float | None = None
    update_ratio: float | None = None
    largest_update_ratio: float | None = None
    clip: float | None = None
    scale: float | None = None
    skipped: bool = False
    kept: float | None = None
    rate: float | None = None
    term: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A later probe of the same network: ``step`` optimizer steps after the first."""

    step: int
    sites: tuple[Site, ...]
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True)
class Experiment:
    """An intervention on a copy: train on one fixed batch with one lever moved; the losses tell.

    ``lever`` is "none" (the user's own setting), "learning-rate", "learning-rate-in-training" (on changing batches),
    "learning-rate-level" (all groups have the largest of them),
    "eps" and "weight-decay" (the optimizer's), "dropout" (its modules' probability), "inputs-standardized",
    "targets-standardized", "logits" (what cross-entropy reads) or "float32" (all weights and data in full precision);
    ``factor`` what it was multiplied by.
    ``floor`` is the constant predictor's loss on that batch.
    "term" is the user's own setting too, with the losses of one term of several; so is "term-alone", where this term
    alone is trained on.
    """

    lever: Literal[
        "none",
        "learning-rate",
        "learning-rate-in-training",
        "learning-rate-level",
        "eps",
        "weight-decay",
        "dropout",
        "inputs-standardized",
        "targets-standardized",
        "logits",
        "float32",
        "term",
        "term-alone",
    ]
    factor: float
    losses: tuple[float, ...]
    floor: float | None = None

    @property
    def progress(self) -> float | None:
        """Share of the way from the constant predictor's loss (or the first loss) to the lowest possible, 0..1.

        The end is the median of the last fifth of the losses. NaN or a diverged end counts as 0.  None for losses that
        go to and fro about 0, as a policy's do: zero is not their bottom.
        """
        if len(self.losses) < 5:
            return None
        tail = sorted(self.losses[-max(1, len(self.losses) // 5) :])
        end, start = tail[len(tail) // 2], self.losses[0]
        if not math.isfinite(end) or not math.isfinite(start):
            return 0.0
        if self.floor is None and min(self.losses) < 0 and not self._stands_out(start - end):
            return None
        base = start if self.floor is None else min(self.floor, start) if self.floor > 0 else start
        if base <= 0:
            return None
        return min(1.0, max(0.0, 1.0 - end / base))

    def _stands_out(self, fall: float) -> bool:
        """Is a fall far larger than what the loss changes by from step to step?"""
        changes = sorted(abs(after - before) for before, after in pairwise(self.losses))
        return fall > 10 * changes[len(changes) // 2]


@dataclass(frozen=True, slots=True)
class NonFinite:
    """Where the first NaN or Inf was born: the op, forward or backward, the step, and what went in."""

    where: str
    op: str
    direction: Literal["forward", "backward", "input", "parameter"]
    step: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where the graph ends although trainable parameters lie behind it.

    ``calls`` = so many calls of the module in ``where`` are out of the graph while later ones are in it.
    """

    where: str
    op: str
    behind: tuple[str, ...]
    detail: str = ""
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Flow:
    """All that was measured, as plain numbers: what the rules read and what a bug report contains.

    ``stable_rank`` is that of a sketch of eight rows of the Jacobian from the first to the last activation (1 = all
    directions collapsed into one); measured only where ten or more weight layers stand in a row. ``others`` = networks
    between these weights and the loss that another optimizer trains on a loss of its own: a discriminator, a critic.
    ``mixed`` = the first module at which samples that the loss takes for separate ones read one another.
    ``classes_seen`` = how many classes a batch holds in the middle, and how many if the data were shuffled.
    """

    sites: tuple[Site, ...]
    parameters: tuple[Parameter, ...]
    loss: LossView
    times: tuple[TimeProfile, ...] = ()
    inputs: tuple[InputView, ...] = ()
    optimizer: OptimizerView | None = None
    steps: tuple[Step, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    experiments: tuple[Experiment, ...] = ()
    cuts: tuple[Cut, ...] = ()
    nonfinite: NonFinite | None = None
    unobserved: tuple[str, ...] = ()
    batch_size: int | None = None
    stable_rank: float | None = None
    origin: Literal["rehearsal", "run"] = "rehearsal"
    others: tuple[str, ...] = ()
    mixed: str | None = None
    classes_seen: tuple[float, float] | None = None
    framework: str = "torch"
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Strictly standard JSON; infinities and NaN are written as strings."""
        return serialize.to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Flow:
        """The Flow that ``to_json`` wrote; ValueError if the text is anything else."""
        return serialize.from_json(cls, text, schema=SCHEMA)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One measured number beside its normal range, as a person would read it."""

    name: str
    value: float
    unit: str
    normal: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause with its place, its proof and its cure; symptoms it explains are folded under it."""

    cause: Cause
    where: tuple[str, ...]
    confidence: float
    severity: Severity
    evidence: tuple[Evidence, ...]
    message: str
    remedies: tuple[str, ...]
    source: str
    symptoms: tuple[Finding, ...] = field(default=())
