"""Centred updates: an optimizer that moves each unit's weights without moving their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["CenteredUpdates"]


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
        parameters: whose updates to centre; all with two axes or more where not given. Axis 0 has the output units, as
            in linear and convolution weights; leave out embeddings and transposed convolutions.

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

    def __init__(self, optimizer: Optimizer, parameters: Iterable[Tensor] | None = None) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ValueError(
                f"CenteredUpdates got a {type(optimizer).__name__}. Expected a torch.optim.Optimizer. "
                "Build one first: CenteredUpdates(torch.optim.RMSprop(model.parameters()))."
            )
        self.inner = optimizer
        self._chosen = None if parameters is None else self._checked(list(parameters))
        self._before: list[tuple[Tensor, Tensor]] = []
        self._listen()

    def _checked(self, parameters: list[Tensor]) -> list[Tensor]:
        known = {id(p) for group in self.inner.param_groups for p in group["params"]}
        for p in parameters:
            if id(p) not in known or p.ndim < 2:
                raise ValueError(
                    f"CenteredUpdates: a parameter of shape {tuple(p.shape)} cannot be centred. Expected parameters of "
                    "the wrapped optimizer with at least two axes, output units first. Leave biases and norms out."
                )
        return parameters

    def _listen(self) -> None:
        """Work inside the wrapped optimizer's step: other hooks on it run once, and see the centred weights."""
        self.inner.register_step_pre_hook(self._before_step)
        self.inner.register_step_post_hook(self._after_step)

    def _before_step(self, _: Optimizer, args: Any, kwargs: Any) -> Any:
        self._center_gradients()
        self._before = [(p, _row_means(p)) for p in self._centered()]
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
        for p in self._centered():
            if p.grad is not None and not p.grad.is_sparse:
                p.grad.sub_(p.grad.mean(dim=tuple(range(1, p.ndim)), keepdim=True))

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        for p, before in self._before:
            p.sub_((_row_means(p) - before).to(p.dtype))
        self._before = []

    def _centered(self) -> list[Tensor]:
        if self._chosen is not None:
            return self._chosen
        return [p for group in self.inner.param_groups for p in group["params"] if p.ndim >= 2]

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


def _row_means(p: Tensor) -> Tensor:
    """Mean over each unit's weights, accurate enough that differences of two are: weights are far above updates."""
    wide = torch.complex128 if p.is_complex() else torch.float64
    if p.device.type == "mps":  # has no float64
        wide = torch.float32
    return p.detach().mean(dim=tuple(range(1, p.ndim)), keepdim=True, dtype=wide)
