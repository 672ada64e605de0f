"""Omega by definition: one sample, one step, one matrix at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev


def shares(pull: Callable[[Tensor, Tensor], Tensor], weight: Tensor, cotangents: Tensor) -> Tensor:
    """Mean over samples of (||pull(W, v)|| / ||v|| - 1)^2, v as a constant row for each sample."""
    terms = []
    for sample, v in enumerate(cotangents):
        if v.norm() > 0:
            terms.append((pull(weight, sample).norm() / v.norm() - 1) ** 2)
    return torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)


def deep_omega(weights: list[Tensor], frozen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over transitions; ``frozen``: (slopes s'(a_k), cotangents dC/da_{k+1}) of each, (samples, features)."""
    total = torch.zeros((), dtype=torch.float64)
    for weight, (slope, v) in zip(weights, frozen, strict=True):
        total = total + shares(lambda w, i, s=slope, v=v: torch.diag(s[i]) @ w.T @ v[i], weight, v)
    return total


def derivative(activation: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
    """s'(a) by its own definition: element by element, by automatic differentiation of one number."""
    slope = torch.func.grad(activation)
    return torch.stack([slope(z) for z in a.reshape(-1)]).reshape(a.shape)


def cell_omega(cell: Callable[..., tuple[Tensor, ...]], steps: list, weights: list[Tensor]) -> Tensor:
    """Omega of gated cells: the whole Jacobian of a step, sample by sample, with states and cotangents frozen.

    ``steps``: (x, states before, cotangents after) of each transition.
    """
    total = torch.zeros((), dtype=torch.float64)
    for x, before, arrived in steps:
        sizes = [part.shape[1] for part in before]

        def pull(_: Tensor, i: int, x=x, before=before, arrived=arrived, sizes=sizes) -> Tensor:
            def step(state: Tensor) -> Tensor:
                parts = tuple(p[None] for p in state.split(sizes))
                return torch.cat([part[0] for part in cell(x[i][None], parts, *weights)])

            jacobian = jacrev(step)(torch.cat([part[i] for part in before]))
            return torch.cat([part[i] for part in arrived]) @ jacobian

        total = total + shares(pull, weights[0], torch.cat(arrived, 1))
    return total


def central_differences(value: Callable[[], Tensor], weight: Tensor, step: float = 1e-6) -> Tensor:
    """dvalue/dweight entry by entry, the weight changed in place and put back."""
    gradient = torch.zeros_like(weight)
    flat, out = weight.detach().view(-1), gradient.view(-1)
    for index in range(flat.numel()):
        kept = flat[index].item()
        ends = []
        for sign in (1, -1):
            flat[index] = kept + sign * step
            ends.append(value().item())
        flat[index] = kept
        out[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient
