"""Signs of life of recurrent layers over time: from the first step to the last."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.init.matrices import semi_orthogonal
from unvanish.torch.init.measures import log_ratio, noise_like, spread, squared_lengths
from unvanish.torch.init.recurrences import Recurrence, recurrences
from unvanish.torch.init.result import Vitals

_COTANGENTS = 64  # over all samples: ln of the gain is then known to a tenth


def signs_over_time(model: nn.Module, inputs: Any) -> Iterator[Vitals]:
    r"""Vital signs of every recurrent layer and direction that makes two steps or more.

    .. math:: \text{backward} = \ln \frac{\|\partial y_T / \partial s_1\|_F}
                                         {\|\partial y_T / \partial s_{T - 1}\|_F},\quad
              \text{forward} = \ln \frac{\|y_T(x_1 + \epsilon) - y_T(x)\|}
                                        {\|y_T(x + \epsilon) - y_T(x)\| / \sqrt T}

    with y the outputs, s the states, and noise epsilon as large as the inputs' deviations, at the first step or at
    all. Forward is thus the memory of the first step in units of its fair share. Separation is that of y_T.
    """
    for one in recurrences(model, inputs):
        if len(one.x) > 1:
            yield _signs(one)


def _signs(one: Recurrence) -> Vitals:
    with torch.no_grad():
        last = one.run(one.x, one.state)[0][-1]
        _, state = one.run(one.x[:1], one.state)
    over = f"over {len(one.x)} steps of {one.label}"
    vitals = Vitals(forward=_memory(one, last), backward=_backward(one, state), over=over)
    both = spread(last)
    return vitals if both is None else replace(vitals, separation=both[0] / both[1] if both[1] else 0.0)


def _backward(one: Recurrence, state: tuple[Tensor, ...]) -> float:
    """By random orthonormal cotangents, of each sample its own: exact where there are as many as units."""
    first = [part.detach().requires_grad_() for part in state]
    with torch.enable_grad():
        last = one.run(one.x[1:-1], tuple(first))[1] if len(one.x) > 2 else tuple(first)
        end = one.run(one.x[-1:], last)[0][-1]
    samples, units = end.shape
    count = min(units, -(-_COTANGENTS // samples))
    generator = torch.Generator().manual_seed(0)
    squares = [0.0, 0.0]
    for cotangent in semi_orthogonal(samples, count, units, like=end, generator=generator).unbind(1):
        rows = torch.autograd.grad(end, [*first, *last], cotangent, retain_graph=True)
        for place, parts in enumerate((rows[: len(first)], rows[len(first) :])):
            squares[place] += sum(float(squared_lengths(part).sum()) for part in parts)
    return log_ratio(math.sqrt(squares[0]), math.sqrt(squares[1]))


@torch.no_grad()
def _memory(one: Recurrence, last: Tensor) -> float | None:
    """None where no noise changes anything, as at inputs that are not finite."""
    size = float((one.x - one.x.mean(dim=(0, 1))).square().mean().sqrt()) or 1.0
    noise = size * noise_like(one.x, torch.Generator().manual_seed(1))
    first = torch.cat([noise[:1], torch.zeros_like(noise[1:])])
    changes = [one.run(one.x + change, one.state)[0][-1] - last for change in (first, noise)]
    by_first, by_all = (math.sqrt(float(squared_lengths(change).mean())) for change in changes)
    return log_ratio(by_first * math.sqrt(len(one.x)), by_all) if by_all else None
