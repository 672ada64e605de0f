"""RMSprop as an optimizer of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from operator import is_
from typing import Any, Self, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from unvanish.torch.rmsprop import eager, fused, sparse
from unvanish.torch.rmsprop.gather import Gathered, Known, gather
from unvanish.torch.rmsprop.loading import check_form, check_shapes, complete, restore
from unvanish.torch.rmsprop.norm import clip_factor, global_norm
from unvanish.torch.rmsprop.settings import PRESETS, Settings
from unvanish.torch.rmsprop.slots import State
from unvanish.torch.rmsprop.telling import Told, ignored, skipped_message

Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


class RMSprop(Optimizer):
    r"""Divides each gradient by the root of its running mean square: entries with small gradients move too.

    .. math::
        v \leftarrow \rho v + (1 - \rho) g^2, \qquad \theta \leftarrow \theta - \eta \frac{g}{\sqrt{v + \epsilon}}

    With the other arguments, in this order: ``clip`` multiplies g by min(1, clip / norm of all gradients); coupled
    weight decay adds :math:`\lambda\theta` to g, decoupled multiplies :math:`\theta` by :math:`1 - \eta\lambda`;
    ``bias_correction`` divides the averages by :math:`1 - \rho^t`; ``centered`` puts the variance :math:`v - m^2`
    with :math:`m \leftarrow \rho m + (1 - \rho) g` in the place of v, at least its rounding error, so never negative
    (elsewhere constant gradients end in NaN); ``momentum`` accumulates :math:`b \leftarrow \mu b + u` of the update u
    and moves by b, ``nesterov`` by :math:`u + \mu b`.

    **A bad gradient does no lasting harm.**  An entry whose gradient is NaN or Inf has no part in that step: its
    parameter and state stay as they are; ``state[p]["skipped"]`` counts them, and the first is warned of (on a GPU
    they are only counted: to look would make the program wait).  Gradients are limited to 2^63 in float32 and 2^511
    in float64, so that v stays finite.

    **Vanished gradients.**  Below ``gradient_floor(eps)``, by default 1.8e-4, the update vanishes with the gradient:
    choose eps for the smallest gradient that matters.  With *coupled* weight decay, a parameter whose gradient has
    vanished still moves by about lr each step towards 0, nearly whatever the size of the decay, as the decay itself
    is divided by its own root mean square: decoupled, the default, is free of it.

    **Speed.**  On a CPU the step is one pass over memory compiled by Numba (extra ``fast``), clipping included, or,
    without Numba, pieces that stay in the cache.  On a GPU ``fused=True`` uses ``torch.compile``, which this project
    has not run on a GPU yet.

    Args:
        params: parameters, named parameters or parameter groups, as for every optimizer; float16 and bfloat16
            parameters keep their state in float32, complex ones are pairs of real numbers.
        lr: learning rate :math:`\eta`, or a tensor with one element.
        rho: decay :math:`\rho` of the averages, in [0, 1).
        eps: :math:`\epsilon` > 0, in units of g^2 if inside of the root, else of g.
        eps_inside: :math:`\sqrt{v + \epsilon}`; else :math:`\sqrt v + \epsilon`.
        momentum: :math:`\mu` in [0, 1).
        lr_in_momentum: the buffer accumulates updates multiplied by the learning rate of their own time; else those
            before it, so that a change of the learning rate acts on the whole buffer at once.
        nesterov: look one step ahead along the momentum.
        centered: divide by the running standard deviation.
        initial_accumulator: v before the first step.
        bias_correction: undo that v starts at ``initial_accumulator`` = 0.
        weight_decay: :math:`\lambda`.
        decoupled_weight_decay: apart from the gradient; else L2 in the gradient.
        clip: largest global norm of the gradients of all groups that have a ``clip``, over their finite entries;
            the gradients themselves are not changed.
        maximize: go uphill.
        foreach: True: put small tensors side by side; False: one at a time; None: as True where Numba does not serve.
        fused: the compiled step (None: on the CPU where Numba is installed and ``foreach`` is None).
        capturable: nothing that a CUDA graph could not replay.
        differentiable: autograd can go through the step.

    Raises:
        ValueError: an argument is out of its range, or two exclude each other.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        >>> optimizer = RMSprop([w], lr=0.1, clip=1.0)
        >>> w.square().sum().backward()
        >>> optimizer.step()
        >>> [round(x, 4) for x in w.tolist()]
        [0.6838, 1.6838, 2.6838]

    Sparse gradients give the result of the dense ones they stand for (as in Keras; ``torch.optim.SparseAdam`` is lazy
    instead); without momentum, centring and weight decay only their rows are computed.  State dictionaries of
    ``torch.optim.RMSprop`` can be loaded, and go on as there.

    Source: Tieleman and Hinton (2012), Lecture 6.5, COURSERA: Neural Networks for Machine Learning.  Centred: Graves
    (2013), arXiv:1308.0850.
    """

    def __init__(  # noqa: PLR0913 - as many as the libraries it stands in for have together
        self,
        params: Parameters,
        lr: float | Tensor = 1e-3,
        rho: float = 0.9,
        eps: float = 1e-7,
        *,
        eps_inside: bool = True,
        momentum: float = 0.0,
        lr_in_momentum: bool = True,
        nesterov: bool = False,
        centered: bool = False,
        initial_accumulator: float = 0.0,
        bias_correction: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        clip: float | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        given = dict(locals())
        self._forget()
        super().__init__(params, {name: given[name] for name in Settings.__dataclass_fields__})

    @classmethod
    def like(cls, library: str, params: Parameters, **settings: Any) -> Self:
        """With the defaults of another library's RMSprop, which it then equals to rounding.

        Args:
            library: "keras", "torch", "optax" or "timm".
            params: as for ``RMSprop``.
            **settings: arguments of ``RMSprop`` in place of the library's defaults. With momentum or weight decay
                these follow the library's convention too.

        Raises:
            ValueError: another library, or a setting out of its range.

        Example:
            >>> import torch
            >>> RMSprop.like("torch", [torch.zeros(2)], momentum=0.9).param_groups[0]["rho"]
            0.99
        """
        if not isinstance(library, str) or library not in PRESETS:
            raise ValueError(
                f"RMSprop.like was given library={library!r}. Expected one of {', '.join(PRESETS)}. To mend it: choose "
                "one of them, or give the settings to RMSprop itself."
            )
        return cls(params, **{**PRESETS[library], **settings})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in every optimizer; the settings of the group are checked."""
        super().add_param_group(param_group)
        try:
            Settings.of(self.param_groups[-1], may_wait=True)
        except ValueError:
            del self.param_groups[-1]
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have a gradient.

        Args:
            closure: computes the loss anew and its gradients.

        Returns:
            What the closure returned, else None.

        Raises:
            ValueError: a parameter group was edited to settings out of their range.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(bool(self.defaults["differentiable"])):
            self._step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the optimizer of this state dictionary stopped: an RMSprop from here or ``torch.optim``.

        Args:
            state_dict: as from ``state_dict()``; nothing of it is shared afterwards.

        Raises:
            ValueError: it is no state dictionary, or belongs to other parameter groups or parameters of other shapes.
        """
        check_form(state_dict)
        check_shapes(state_dict, self.param_groups)
        super().load_state_dict(state_dict)
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for saved_id, p in zip(ids, parameters, strict=True):
            if saved_id in state_dict["state"]:
                restore(self.state[p], state_dict["state"][saved_id], p)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        for group in self.param_groups:
            complete(group, self.defaults)

    def _forget(self) -> None:
        self._told = Told()
        self._known: list[Known] = []  # of each group at the last step
        self._states: list[State] = []  # all there were then

    def _step(self) -> None:
        settings = [Settings.of(group) for group in self.param_groups]  # all, before any step is counted
        groups = list(zip(settings, self._gather(settings), strict=True))
        clipped = [gathered for s, gathered in groups if s.clip is not None]
        norm = global_norm(clipped) if clipped else 0.0
        skipped = 0
        for s, gathered in groups:
            for what, message in ignored(s, gathered):
                self._told.once(what, message)
            factor = clip_factor(norm, s.clip)
            skipped += self._step_group(gathered, s, -factor if s.maximize else factor)
        if skipped:
            self._told.once("skipped", skipped_message(self))

    def _gather(self, settings: list[Settings]) -> list[Gathered]:
        states = list(self.state.values())
        if len(states) != len(self._states) or not all(map(is_, states, self._states)):
            self._known = []
        gathered = [
            gather(group["params"], self.state, s, compiled=_wants_numba(s), known=known)
            for group, s, known in zip_longest(self.param_groups, settings, self._known[: len(settings)])
        ]
        self._known, self._states = [one.known for one in gathered], list(self.state.values())
        return gathered

    def _step_group(self, gathered: Gathered, s: Settings, scale: float | Tensor) -> int:
        """Update these; returns how many entries were skipped, as far as that is known without waiting."""
        lr = s.learning_rate
        skipped = sum(fused.step(batch, s, float(lr), float(scale)) for batch in gathered.batches)
        skipped += sum(sparse.step(slot, s, lr, scale) for slot in gathered.rows)
        return skipped + eager.step(gathered.slots, s, lr, scale)


def _wants_numba(s: Settings) -> bool:
    """Whether the step compiled by Numba is wanted, possible with these settings, and there."""
    wanted = s.fused or (s.fused is None and s.foreach is None)
    if not wanted or s.differentiable or s.capturable or torch.compiler.is_compiling():
        return False  # under torch.compile the user has the step compiled
    return fused.kernel() is not None
