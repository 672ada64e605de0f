"""A tape as a network of its own: the tensors that a program trains, and the calls that make a loss of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unvanish.torch.rehearsal.copies import preserved_randomness
from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.run.seen import Seen, gradient_norms
from unvanish.torch.run.tape import Tape

_NEAR = 1e-3  # two ways to one number may add in another order
_NOTHING = 1e-6  # of the largest gradient


class Played(nn.Module):
    """``forward`` plays the tape with weights that can be copied together with their optimizer."""

    def __init__(self, tape: Tape, seen: Seen) -> None:
        """Take the program's own tensors; ``seen``: its own pass, to be compared with."""
        super().__init__()
        self.tape = tape
        self.leaves = list(tape.leaves.values())
        self.weights = nn.ParameterList(leaf for leaf in self.leaves if isinstance(leaf, nn.Parameter))
        self._loss = seen.before.loss.value
        self._norms = [None if seen.kept.get(id(leaf)) else seen.norms.get(id(leaf)) for leaf in self.leaves]

    def forward(self, *, same_random: bool = False) -> Tensor:
        """The loss."""
        return self.tape.play(dict(zip(self.tape.leaves, self.leaves, strict=True)), same_random=same_random)

    def faithful(self) -> bool:
        """With the same random numbers, is the loss the program's own, and are its gradients?

        Derivatives of the user's (autograd.Function), and what Python decided anew, would show here.
        """
        with preserved_randomness(), torch.enable_grad():
            loss = self(same_random=True)
            same = math.isclose(float(loss.detach()), self._loss, rel_tol=_NEAR, abs_tol=1e-12)
            if not (same and loss.requires_grad):
                return False
            gradients = torch.autograd.grad(loss, self.leaves, allow_unused=True)
        norms = gradient_norms(dict(enumerate(gradients)), None)
        least = _NOTHING * max(norms.values(), default=0.0)
        return all(
            theirs is None or math.isclose(norms.get(place, 0.0), theirs, rel_tol=_NEAR, abs_tol=least)
            for place, theirs in enumerate(self._norms)
        )


def play(model: nn.Module, batch: None) -> Tensor:
    """The objective of a played program: its batch lies on the tape."""
    loss: Tensor = model()
    return loss


def objective() -> Objective:
    """How a played program comes to its loss."""
    return Objective(None, play)
