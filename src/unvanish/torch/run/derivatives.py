"""Calls of ``torch.autograd.grad``: which of them are the backward pass of a training step, and which are no training.

Derivatives by the inputs (a PINN, a gradient penalty), of single weights (a balance of loss terms), of derivatives
(Hessian times vector) and inside a program that trains by ``backward()`` are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from unvanish.torch.run.track import Track


class Derivatives:
    """What was learnt about the calls so far."""

    def __init__(self) -> None:
        self.others = 0  # calls that were no training
        self._watched = False
        self._backward = False  # the program calls backward(), so it trains by that
        self._doubled = -1  # steps made when a derivative was last made to be differentiated again
        self._met: dict[int, tuple[int, float]] = {}  # weights of a program without an optimizer, as they were

    def loss_of(self, tracks: Sequence[Track], outputs: Any, inputs: Any, *, plain: bool, again: bool) -> Tensor | None:
        """The loss that this call goes back from, if it is a training step's; else None.

        Args:
            tracks: the optimizers known.
            outputs: as given to ``torch.autograd.grad``.
            inputs: the same, but no iterator.
            plain: called without ``grad_outputs``.
            again: the derivative is to be differentiated again (``create_graph``).
        """
        losses, weights = parts(outputs), parts(inputs)
        asked = plain and not self._backward and len(losses) == 1
        mine = asked and (any(_hold(track, weights) for track in tracks) or self._moves(tracks, weights))
        if mine and again:
            self._doubled = _steps(tracks)
        if not mine or self._doubled == _steps(tracks) or losses[0].numel() != 1:
            self.others += 1
            return None
        self._watched = True
        return losses[0]

    def _moves(self, tracks: Sequence[Track], weights: tuple[Tensor, ...]) -> bool:
        """Without any optimizer: are these the parameters of the call before, and other numbers by now?"""
        if not (all(track.by_hand for track in tracks) and all(isinstance(w, nn.Parameter) for w in weights)):
            return False
        before, self._met = self._met, {id(weight): _state(weight) for weight in weights}
        return before.keys() == self._met.keys() and before != self._met

    def backward(self) -> bool:
        """``backward()`` was called; True if calls of ``grad`` were taken for training until now: not again."""
        first = self._watched and not self._backward
        self._backward = True
        return first


def parts(value: Any) -> tuple[Tensor, ...]:
    """The tensors of what ``grad`` takes for outputs or inputs: one, several, or a dict of them."""
    if isinstance(value, Tensor):
        return (value,)
    several = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return tuple(one for one in several if isinstance(one, Tensor))


def _state(weight: Tensor) -> tuple[int, float]:
    """What changes when its numbers do: autograd's count, or, for changes by ``.data``, its sum."""
    return weight._version, float(weight.detach().sum())


def _hold(track: Track, weights: tuple[Tensor, ...]) -> bool:
    """Are these, or most of them, at least half of what the optimizer moves?"""
    own = sum((ref := track.parameters.get(id(one))) is not None and ref() is one for one in weights)
    return 2 * own > len(weights) and 2 * own >= len(track.parameters)


def _steps(tracks: Sequence[Track]) -> int:
    return sum(track.count for track in tracks)
