"""The first NaN or Inf of each optimizer's training: found when it is born, noted with the step that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from unvanish.torch.probe.naming import Names
from unvanish.torch.run.birth import find_birth_unwatched
from unvanish.torch.run.roots import Roots
from unvanish.torch.run.seen import Gradients, Seen
from unvanish.torch.run.track import Track
from unvanish.torch.views.births import find_backward_birth
from unvanish.types import NonFinite


class Newborn:
    """What was born and no step has followed yet."""

    def __init__(self) -> None:
        self.found: NonFinite | None = None
        self.left_out: NonFinite | None = None  # by a GradScaler, as long as it has left out every step

    def at_rest(self, loss: Tensor, roots: Roots, tracks: Sequence[Track]) -> None:
        """Find it in a loss that is not finite, at a step that is not looked at; the first of each optimizer counts."""
        if self.found is not None or all(track.nonfinite is not None for track in tracks):
            return
        roots.refresh()
        self.found = find_birth_unwatched(loss, roots.names)
        for track in tracks:
            track.losses.wake = 0

    def after(self, seen: Seen, gradients: Gradients, names: Names) -> None:
        """Find it in a backward pass that was looked at."""
        born = seen.birth or _in_gradients(seen, gradients, names)
        if seen.scale is not None and seen.birth is None:  # Inf is how a scale is found
            self.left_out = born
        elif self.found is None:
            self.found = born

    def followed(self, track: Track, *, skipped: bool) -> None:
        """A step of this optimizer followed; one that a GradScaler left out does no harm."""
        if skipped:
            return
        self.left_out = None
        if self.found is not None and track.nonfinite is None:
            track.nonfinite = replace(self.found, step=track.count)
        self.found = None


def _in_gradients(seen: Seen, gradients: Gradients, names: Names) -> NonFinite | None:
    if all(math.isfinite(norm) for norm in seen.norms.values()):
        return None
    named = {names.parameters.get(key, "a parameter"): gradient for key, gradient in gradients.items()}
    return find_backward_birth(seen.sites, named, 0)
