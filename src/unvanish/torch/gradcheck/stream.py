"""Random directions: every piece starts at the same place of one stream, so its numbers are drawn once for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SEED = 0
_KEPT = 1 << 22  # numbers, 32 MB: what a piece draws beyond them (many measurements, huge tensors) it draws for itself


@dataclass(slots=True)
class Numbers:
    """Uniform in [-1, 1), drawn as they are asked for: NumPy's SFC64 takes half the time of PyTorch's."""

    seed: int
    _generator: np.random.Generator | None = None

    @property
    def generator(self) -> np.random.Generator:
        """Made when first needed: most pieces never do."""
        if self._generator is None:
            self._generator = np.random.Generator(np.random.SFC64(self.seed))
        return self._generator

    def draw(self, count: int) -> Tensor:
        """The next so many."""
        return torch.from_numpy(self.generator.random(count)).mul_(2).sub_(1)


@dataclass(slots=True)
class Stream:
    """The first numbers of all pieces, as many as were asked for so far."""

    _kept: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    _numbers: Numbers = field(default_factory=lambda: Numbers(_SEED))

    def part(self, start: int, count: int) -> Tensor | None:
        """A view, not to be written into; None beyond what is kept."""
        if start + count > _KEPT:
            return None
        have = self._kept.numel()
        if start + count > have:
            more = min(max(start + count - have, have // 4), _KEPT - have)  # it grows seldom
            self._kept = torch.cat([self._kept, self._numbers.draw(more)])
        return self._kept[start : start + count]


@dataclass(slots=True)
class Draws:
    """What one piece draws: the stream from its beginning, then numbers of its own."""

    stream: Stream = field(default_factory=Stream)
    own: Numbers = field(default_factory=lambda: Numbers(_SEED + 1))
    _place: int = 0

    def like(self, values: Tensor) -> Tensor:
        """Uniform in [-1, 1), with the shape, dtype and device of ``values``; not to be written into."""
        drawn = self.stream.part(self._place, values.numel())
        if drawn is None:
            drawn = self.own.draw(values.numel())
        self._place += values.numel()
        drawn = drawn.view(values.shape)
        return drawn if _as_drawn(values) else drawn.to(values)

    def like_all(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Of each the same as ``like``, one after the other."""
        sizes = [one.numel() for one in values]
        drawn = self.stream.part(self._place, sum(sizes))
        if drawn is None or not all(_as_drawn(one) for one in values):
            return [self.like(one) for one in values]
        self._place += sum(sizes)
        return [part.view(one.shape) for part, one in zip(drawn.split(sizes), values, strict=True)]

    def here(self) -> tuple[int, Any]:
        """A place to come ``back`` to, for the same numbers once more."""
        return self._place, self.own.generator.bit_generator.state

    def back(self, place: tuple[int, Any]) -> None:
        """Draw again what followed ``here``."""
        self._place, self.own.generator.bit_generator.state = place


def _as_drawn(values: Tensor) -> bool:
    return values.dtype is torch.float64 and values.device.type == "cpu"
