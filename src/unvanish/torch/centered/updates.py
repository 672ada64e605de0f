"""The wrapper around an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unvanish.torch.centered.fans import Fan, fans_of, rows_of


class CenteredUpdates(Optimizer):
    r"""Any optimizer, with the mean over each output unit's weights taken out of every gradient and every update.

    .. math:: \theta \leftarrow \theta + C \Delta(C g),\quad (C x)_{ij} = x_{ij} - \frac1n \sum_{k=1}^{n} x_{ik}

    Where activations have a mean (sigmoid, ReLU, GELU), each unit's gradient has a large part along the constant
    vector. An optimizer that scales every weight's step alike follows it, which moves the mean of all units behind,
    layer after layer; so it is taken out of the *update*, after the preconditioner. And it is what such an optimizer
    divides by: of a sigmoid's gradient the rest is a fifth at depth 1,000 and a seventh at depth 10,000, and would make
    that part of a step; so it is taken out of the *gradient*, too, before the preconditioner, in place as clipping does
    it. It is harmless with tanh and mirrored weights, and of no use on a bad initialisation.

    It is an Optimizer itself: schedulers, ``param_groups``, ``state_dict`` (the wrapped one's, unchanged) and
    gradient scalers work as before. Memory: two numbers per output unit while stepping, no copy of the weights.
    Decoupled weight decay is part of the update, and so is centred too.

    Args:
        optimizer: the optimizer to wrap; step and zero_grad this one from then on.
        parameters: whose updates to centre: a model, for the weights of its linear, convolution, recurrent and
            attention layers, or parameters with two axes or more, output units first. All such parameters where not
            given. Give the model where it has embeddings, or transposed convolutions: of these the output units are
            on axis 1, and with a stride the places of the kernel that meet in one output are centred together.

    Raises:
        ValueError: not an optimizer, or a parameter that it does not have or that has one axis only.

    Example:
        >>> weight = torch.nn.Parameter(torch.eye(3))
        >>> optimizer = CenteredUpdates(torch.optim.SGD([weight], lr=1.0))
        >>> weight.grad = torch.tensor([[1.0, 2, 3], [1, 1, 1], [0, 0, 3]])
        >>> optimizer.step()
        >>> (weight - torch.eye(3)).tolist()
        [[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, -2.0]]

    Source: Yong et al. 2020 (arXiv:2004.01461), gradient centralisation, here on both sides of the preconditioner.
    """

    def __init__(self, optimizer: Optimizer, parameters: nn.Module | Iterable[Tensor] | None = None) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ValueError(
                f"CenteredUpdates got a {type(optimizer).__name__}. Expected a torch.optim.Optimizer. "
                "Build one first: CenteredUpdates(torch.optim.RMSprop(model.parameters()))."
            )
        self.inner = optimizer
        self._chosen = None if parameters is None else self._fans(parameters)
        self._before: list[tuple[Fan, list[Tensor]]] = []
        self._listen()

    def _fans(self, parameters: nn.Module | Iterable[Tensor]) -> list[Fan]:
        known = {id(p) for group in self.inner.param_groups for p in group["params"]}
        if isinstance(parameters, nn.Module):  # its frozen layers need not be in the optimizer
            fans = [fan for fan in fans_of(parameters) if id(fan.weight) in known]
        else:
            fans = rows_of(_checked(parameters, known))
        if not fans:
            raise ValueError(
                "CenteredUpdates: nothing to centre is among the wrapped optimizer's parameters. Expected weights of "
                "linear, convolution, recurrent or attention layers. Build the optimizer of this model's parameters()."
            )
        return fans

    def _listen(self) -> None:
        """Work inside the wrapped optimizer's step: other hooks on it run once, and see the centred weights."""
        self.inner.register_step_pre_hook(self._before_step)
        self.inner.register_step_post_hook(self._after_step)

    def _before_step(self, _: Optimizer, args: Any, kwargs: Any) -> Any:
        self._center_gradients()
        self._before = [(fan, fan.means()) for fan in self._centered()]
        return tuple(map(self._centering, args)), {name: self._centering(value) for name, value in kwargs.items()}

    def _centering(self, argument: Any) -> Any:
        """A closure that centres the gradients it computes; anything else as it is."""
        if not callable(argument):
            return argument

        def evaluate() -> Any:
            loss = argument()
            self._center_gradients()
            return loss

        return evaluate

    @torch.no_grad()
    def _center_gradients(self) -> None:
        for fan in self._centered():
            gradient = fan.weight.grad
            if gradient is not None and not gradient.is_sparse:
                fan.center_(gradient)

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        for fan, means in self._before:
            fan.put_back_(means)
        self._before = []

    def _centered(self) -> list[Fan]:
        if self._chosen is not None:
            return self._chosen
        return rows_of(p for group in self.inner.param_groups for p in group["params"] if p.ndim >= 2)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of the wrapped optimizer, centred; returns what that returns."""
        return self.inner.step() if closure is None else self.inner.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the wrapped optimizer's."""
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state; centring has none."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state."""
        self.inner.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.inner.add_param_group(param_group)

    def __getattr__(self, name: str) -> Any:
        """``param_groups``, ``state``, ``defaults``, hooks: the wrapped optimizer's own."""
        if name == "inner":  # not there yet: being copied or unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "_chosen": self._chosen, "_before": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._listen()


def _checked(parameters: Iterable[Tensor], known: set[int]) -> list[Tensor]:
    chosen = list(parameters) if isinstance(parameters, Iterable) else [parameters]
    for p in chosen:
        if not isinstance(p, Tensor) or id(p) not in known or p.ndim < 2:
            what = f"a parameter of shape {tuple(p.shape)}" if isinstance(p, Tensor) else f"a {type(p).__name__}"
            raise ValueError(
                f"CenteredUpdates: {what} cannot be centred. Expected a model, or parameters of the wrapped optimizer "
                "with at least two axes, output units first. Leave biases and norms out."
            )
    return chosen
