"""What is known of one backward pass of the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from unvanish.torch.probe.activations import Units
from unvanish.torch.probe.norms import dense, norms
from unvanish.torch.probe.probe import Probe
from unvanish.torch.probe.scopes import Call
from unvanish.torch.run.batch import Batch
from unvanish.torch.run.tape import Tape
from unvanish.torch.views.observe import Before
from unvanish.types import NonFinite, Site, TimeProfile

Gradients = Mapping[int, Tensor | None]  # by the parameter's identity


@dataclass(slots=True)
class Seen:
    """One backward pass of the user, watched.

    ``norms`` = ||gradient|| per leaf right after it, unscaled; ``kept`` = the same of what was there before it;
    ``apart`` = its gradients were not added up in ``.grad``; ``by_data`` = it goes back to the data too; ``batch``, or
    else ``tape``, is what its loss can be made of again.
    """

    clock: int
    leaves: dict[int, Tensor]
    before: Before
    calls: list[Call]
    batch_size: int | None
    scale: float | None
    kept: dict[int, float]
    sites: tuple[Site, ...] = ()
    units: dict[int, Units] = field(default_factory=dict)
    times: tuple[TimeProfile, ...] = ()
    norms: dict[int, float] = field(default_factory=dict)
    apart: bool = False
    by_data: bool = False
    birth: NonFinite | None = None
    batch: Batch | None = None
    tape: Tape | None = None


@dataclass(slots=True)
class Pending:
    """Between the start and the end of the user's ``backward()``."""

    probe: Probe
    seen: Seen


def gradient_norms(gradients: Gradients, scale: float | None) -> dict[int, float]:
    """||gradient|| of each parameter that has one, divided by the loss scale."""
    known = {key: dense(gradient) for key, gradient in gradients.items() if gradient is not None and gradient.numel()}
    return {key: norms([gradient])[0] / (scale or 1.0) for key, gradient in known.items()}
