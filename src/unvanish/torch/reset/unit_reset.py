"""Dead, saturated, dormant and useless units made new, with the least change of what the network computes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish.torch.reset.checks import check_optimizer, check_settings, trained_by, unwrapped
from unvanish.torch.reset.choose import Choice, choose
from unvanish.torch.reset.events import ResetEvent, ResetReport
from unvanish.torch.reset.groups import UnitGroup, layer_name
from unvanish.torch.reset.history import History
from unvanish.torch.reset.layout import Layout, layout_of
from unvanish.torch.reset.observe import UnitWatch
from unvanish.torch.reset.operate import Patient, all_units, operate
from unvanish.torch.reset.passes import RewiredError
from unvanish.torch.reset.ranks import merged
from unvanish.torch.reset.scores import ScoreChoice, State, scores_of
from unvanish.torch.reset.statistics import UnitStatistics
from unvanish.torch.reset.surgery import Initializer, Surgeon

Chosen = list[tuple[UnitGroup, list[Choice]]]


class UnitReset:
    r"""Finds units that no gradient passes, or that do next to nothing, and makes them new while a model trains.

    A unit j is what one row of a layer's weight makes, a feature or a channel: :math:`h_j = \varphi(w_j x + b_j)`, with
    any normalisation in between.  Its reset

    .. math:: b_k \leftarrow b_k + v_{kj}\,\bar h_j,\quad v_{kj} \leftarrow 0,\quad
              w_j \sim \text{init},\quad b_j \leftarrow 0

    leaves the network's function as it is where :math:`h_j` is constant (dead or saturated), and its mean where it is
    not; the bias :math:`b_k` of each reader takes over what the unit gave before its weights :math:`v_{kj}` are gone.
    Entries of normalisations in between become weight 1, bias 0 and the running statistics of the new unit.  What the
    optimizer keeps of exactly these entries is set back (see :mod:`unvanish.torch.reset.optimizer_state` on the size
    of their first updates).  The measured change of the output stands in the event.

    **What a bias cannot take over.** ``event.output_change`` says how much it is, and ``event.compensated`` is False in
    the first three cases:

    - To a convolution with padding by zeros, and to a transposed one, a constant unit gives less at the rim, or by
      turns more and less.  A dead unit gave nothing and is replaced exactly all the same; of a saturated one the bias
      takes over the mean over all places, the nearest it can come.  A tanh CNN of three 3 x 3 layers on 8 x 8 digits,
      3 of 16 units stuck in each of two layers, lost 5 % of its output and 0.003 of an accuracy of 0.912; larger images
      lose less.  The readers can learn the rim again; a unit left as it is would learn nothing.
    - In a softmax over units each depends on all others: a new unit takes its share from them.
    - Where the weights that read a unit are tied to others (:mod:`unvanish.torch.reset.ties`) they cannot be zero, and
      the new unit is heard at once.  It begins at a tenth of the usual size.
    - With a LayerNorm or GroupNorm between, a reset unit changes its neighbours' normalisation.

    **Which units.** Those made by one linear or convolutional layer (grouped, transposed, ``addmm`` and ``x @ W`` as
    well; a shared layer by all its calls together), followed by one activation (of torch, or of several ops that you
    wrote by hand; softmax over the units) and read only by such layers, reached through views, pools, dropout,
    normalisation: within a residual block, from convolutions through ``flatten`` to a linear layer, the inner layer of
    a Transformer's MLP.  All others (units of the residual stream, gates, attention, recurrent layers, frozen or
    computed weights, those that this optimizer does not hold, the model's outputs) are left alone, and
    ``check(...).not_resettable`` names them with the reason.  Units whose own weights are tied to others' are judged,
    and what is found stands in the log with the reason why it was left alone.

    **When.** ``step`` is called after every ``optimizer.step()``; at each ``every``-th call the scores are measured by
    one forward pass over ``inputs`` in the model's own mode, without dropout, that changes nothing: no buffer, random
    stream, gradient.  Use a large batch: a score knows only the samples it is shown, and a unit silent on n samples may
    still fire on 3/n of them (at 95 % confidence).  What is read outside of PyTorch (NumPy, an extension), and in no
    module of its own, is not seen; the measured change of the output is.

    **On several ranks** every rank calls ``step`` with its own batch: what was measured is added up, and each rank
    resets the same units to the same weights.  Sharded parameters (FSDP) are refused.

    Args:
        model: whose units; DistributedDataParallel and ``torch.compile`` are looked through.
        optimizer: of its parameters.
        score: one of, or several of, "dead", "saturated" (the default is both), "dormant", "low-utility",
            "self-normalized", or instances with other thresholds such as ``Dead(patience=5)``.  With several, the
            first that flags a unit names the reason.
        every: steps between checks.
        maturity: steps a unit is left alone after the start, and after its reset.
        max_share: at most this share of a layer's units (but at least one) is reset at one check, the least alive
            first.  The rest wait: a layer that is dead as a whole has lost its input more often than its weights, and
            it is to be rebuilt in view of the units that came back.
        init: how :math:`w_j` is drawn: "kaiming" (uniform, variance 2/fan_in for the ReLU family and 1/fan_in for
            bounded activations), "lecun" (1/fan_in), "default" (what PyTorch's layers draw, 1/(3 fan_in)), or
            ``f(weight, generator)``, which fills a CPU tensor of the whole weight's shape.
        seed: of the random numbers, which come from a generator of their own, keyed by step and layer.

    Raises:
        ValueError: a setting out of range, no model or optimizer, an optimizer of other parameters, sharded parameters.

    Example:
        >>> from unvanish.torch.reset import Dead
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
        >>> with torch.no_grad():
        ...     _ = net[0].bias[3].fill_(-100.0)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> reset = UnitReset(net, optimizer, Dead(patience=1), every=1, maturity=0)
        >>> for event in reset.step(torch.randn(64, 4).double()):
        ...     print(event.layer, event.units, event.score, event.output_change < 1e-12)
        0 (3,) dead True

    Source: Sokar et al. 2023 (ReDo), Dohare et al. 2024 (continual backpropagation), Farias and Jozefiak 2024 (SNR) for
    the scores; compensation by the bias as Dohare et al. describe it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        score: ScoreChoice = ("dead", "saturated"),
        *,
        every: int = 100,
        maturity: int = 100,
        max_share: float = 0.5,
        init: Initializer = "kaiming",
        seed: int = 0,
    ) -> None:
        check_settings(every=every, maturity=maturity, max_share=max_share, init=init, seed=seed)
        self._model = unwrapped(model)
        check_optimizer(self._model, optimizer)
        self._scores = scores_of(score)
        self._values_read = any(score.values_read for score in self._scores)
        self._every, self._maturity, self._max_share = every, maturity, max_share
        self._surgeon = Surgeon(dict(self._model.named_parameters()), optimizer, init, seed)
        self._history = History()
        self._layout: Layout | None = None
        self._watch: UnitWatch | None = None
        self._trained: frozenset[str] = frozenset()

    @property
    def events(self) -> list[ResetEvent]:
        """All resets so far, and units that were found but left alone, once each time these change."""
        return self._history.events

    def step(self, inputs: Any) -> tuple[ResetEvent, ...]:
        """Count one step of the optimizer; at each ``every``-th, check and reset.

        To be called after ``optimizer.step()``: gradients that still wait in ``.grad`` are those of the old units.

        Args:
            inputs: what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments.
                Looked at only when a check is due.

        Returns:
            What is new in :attr:`events`: what was reset now, and what was found for the first time but left alone.
        """
        self._history.step += 1
        before = len(self.events)
        if self._history.step % self._every == 0:
            self.check(inputs)
        return tuple(self.events[before:])

    @torch.inference_mode(mode=False)  # slopes are asked of autograd
    def check(self, inputs: Any, *, dry_run: bool = False) -> ResetReport:
        """Check now, whatever the schedule says; units younger than ``maturity`` are never chosen.

        Args:
            inputs: as for :meth:`step`.
            dry_run: only say what would be reset; nothing changes, not even what the scores remember.

        Returns:
            What was found.
        """
        statistics = self._measured(inputs)
        assert self._layout is not None
        memory = copy.deepcopy(self._history.memory) if dry_run else self._history.memory
        chosen: Chosen = []
        for group in self._layout.groups:
            choices = self._choices(group, statistics[group.layer], memory.setdefault(group.layer, {}))
            if choices:
                chosen.append((group, choices))
        tied: Chosen = [(group, choices) for group, choices in chosen if group.left_alone is not None]
        free: Chosen = [(group, choices) for group, choices in chosen if group.left_alone is None]
        events, alone = self._events(free), self._events(tied)
        if free and not dry_run:
            events = self._operate(inputs, free, statistics, events)
        if not dry_run:
            self.events.extend(events + tuple(event for event in alone if not self._history.knows(event)))
        events = events + alone
        layers = tuple(group.layer for group in self._layout.groups if group.left_alone is None)
        return ResetReport(self._history.step, events, layers, self._layout.not_resettable)

    def _measured(self, inputs: Any) -> dict[str, UnitStatistics]:
        """Statistics of all layers over all ranks; a model that is wired anew is looked at anew."""
        self._look_for_changes()
        if self._layout is None or self._watch is None:
            self._look(inputs)
            assert self._watch is not None
        try:
            return merged(self._watch.measure(self._model, inputs))
        except RewiredError:
            self._look(inputs)
            return merged(self._watch.measure(self._model, inputs))

    def _look_for_changes(self) -> None:
        """What the user has frozen, replaced or taken from the optimizer since is not ours any more."""
        known = self._surgeon.parameters
        parameters: dict[str, Tensor] = dict(self._model.named_parameters())
        trained = trained_by(self._surgeon.optimizer, parameters)
        replaced = [name for name, parameter in known.items() if parameters.get(name) is not parameter]
        if replaced or len(known) != len(parameters) or trained != self._trained:
            self._layout, self._trained = None, trained
            self._surgeon = replace(self._surgeon, parameters=parameters)
        for layer in map(layer_name, replaced):  # other units have that name now
            self._history.forget(layer)

    def _look(self, inputs: Any) -> None:
        self._layout = layout_of(self._model, inputs, self._trained)
        for group in self._layout.groups:
            self._history.check(group.layer, group.units)
        self._watch = UnitWatch(self._layout, self._values_read)

    def _choices(self, group: UnitGroup, statistics: UnitStatistics, memory: dict[str, State]) -> list[Choice]:
        mature = self._history.ages(group.layer, group.units).to(statistics.samples.device) >= self._maturity
        if self._values_read:
            statistics = replace(statistics, outgoing=self._outgoing(group))
        return choose(self._scores, statistics, memory, mature, self._max_share)

    @torch.no_grad()
    def _outgoing(self, group: UnitGroup) -> Tensor:
        """(U,) sum of |w| over all weights that read each unit."""
        parameters = self._surgeon.parameters
        parts = [
            reader.features.per_unit(reader.plan.sum_by_input(parameters[reader.plan.weight].abs()))
            for reader in group.readers
        ]
        return torch.stack(parts).sum(dim=0)

    def _events(self, chosen: Chosen) -> tuple[ResetEvent, ...]:
        return tuple(
            ResetEvent(
                step=self._history.step,
                layer=group.layer,
                units=tuple(choice.units.nonzero().flatten().tolist()),
                score=choice.score.name,
                values=tuple(choice.values[choice.units].tolist()),
                reason=choice.score.reason,
                of=group.units,
                left_alone=group.left_alone,
                waiting=choice.waiting,
            )
            for group, choices in chosen
            for choice in choices
        )

    def _operate(
        self, inputs: Any, chosen: Chosen, statistics: dict[str, UnitStatistics], events: tuple[ResetEvent, ...]
    ) -> tuple[ResetEvent, ...]:
        """Reset the chosen units; the events with what came of it."""
        assert self._layout is not None
        patients = tuple(
            Patient(group, all_units([c.units for c in choices]), statistics[group.layer].family)
            for group, choices in chosen
        )
        outcome = operate(
            self._model, inputs, patients, self._surgeon, step=self._history.step, signature=self._layout.signature
        )
        for patient in patients:
            self._history.renew(patient.group.layer, patient.units)
        return tuple(
            replace(e, output_change=outcome.output_change, compensated=outcome.compensated[e.layer]) for e in events
        )

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved to go on as if there had been no break: steps, ages, what scores remember, events."""
        return self._history.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state: from :meth:`state_dict` of a UnitReset with the same model and scores.

        Raises:
            ValueError: it lacks something, or belongs to other layers.
        """
        self._history = History.of(state, self._surgeon.parameters)
