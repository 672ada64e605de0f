"""The norm of the input-output Jacobian, from one random projection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.regularize.checks import check_model, check_whole

_ONE_IS_ENOUGH = "Give 1: the estimate is unbiased, and more projections cost as much again each."


class JacobianRegularizer:
    r"""Unbiased estimate of the squared Frobenius norm of the input-output Jacobian, a penalty on explosion.

    .. math::

        \|J\|_F^2 = C \; E_v \|v^T J\|^2 \approx \frac{C}{n} \sum_{i=1}^{n}
        \Big\| \frac{\partial (v_i \cdot z)}{\partial x} \Big\|^2, \qquad v_i \text{ uniform on the unit sphere of } R^C

    averaged over the samples, with z the model's output of C numbers per sample and x all its floating inputs.
    Hoffman's loss adds :math:`\lambda / 2` times this.  It only shrinks the Jacobian: it steadies a net that explodes
    or overfits, and makes vanishing worse.

    Samples are taken to be independent: BatchNorm in training mode mixes them, and the estimate with them.
    One projection makes a training step about 2 to 2.5 times as long for an MLP or CNN, 3 to 4 for ``nn.RNN``, whose
    second derivative has no fused kernel, and 15 to 17 for ``nn.LSTM`` (one CPU thread; measured numbers are in
    ``benchmarks/RESULTS.md``, Regularisation); watching a second call on a quarter of the batch costs a quarter of
    that, and is unbiased too.

    Args:
        model: the network whose call is watched.
        projections: n, random directions for each sample.
        seed: of the directions, drawn from a stream of its own: the global one is not touched.

    Raises:
        ValueError: no model, or projections or a seed that are no whole numbers.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> jacobian = JacobianRegularizer(model)
        >>> with jacobian.watch():
        ...     loss = model(torch.ones(8, 4)).square().mean()
        >>> (loss + 0.005 * jacobian.penalty()).backward()

    Source: Hoffman, Roberts and Yaida 2019, Robust learning with Jacobian regularization, algorithm 1.
    """

    def __init__(self, model: nn.Module, projections: int = 1, *, seed: int = 0) -> None:
        check_model("JacobianRegularizer", model)
        check_whole("JacobianRegularizer", "projections", projections, 1, _ONE_IS_ENOUGH)
        check_whole(
            "JacobianRegularizer", "seed", seed, None, "Give 0: the directions are drawn from their own stream."
        )
        self._model = model
        self._projections = projections
        self._generator = torch.Generator().manual_seed(seed)
        self._inputs: list[Tensor] = []
        self._output: Any = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Around the forward pass: the model's floating inputs become ones with a gradient."""
        self._inputs, self._output = [], None
        before = self._model.register_forward_pre_hook(self._enter, with_kwargs=True)
        after = self._model.register_forward_hook(self._leave)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def penalty(self) -> Tensor:
        """Estimate for the last call that was watched.

        Returns:
            A scalar >= 0 in the output's dtype; unit: (output / input)^2; differentiable with respect to the weights.

        Raises:
            ValueError: no call was watched, no input is floating, or the output is not one tensor with a graph.
        """
        output = self._checked()
        rows = output.reshape(len(output), -1) if output.ndim > 1 else output.reshape(-1, 1)
        total: Tensor = rows.new_zeros(())
        for _ in range(self._projections):
            gradients = torch.autograd.grad(
                rows, self._inputs, self._directions(rows), create_graph=True, allow_unused=True
            )
            total = torch.stack([total, *(g.square().sum() for g in gradients if g is not None)]).sum()
        return total.mul(rows.shape[1] / (self._projections * rows.shape[0]))

    def _directions(self, rows: Tensor) -> Tensor:
        drawn = torch.randn(rows.shape, generator=self._generator, dtype=torch.float64)
        unit: Tensor = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
        return unit.to(rows)

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._inputs = []
        return tuple(self._leaf(value) for value in args), {key: self._leaf(value) for key, value in kwargs.items()}

    def _leaf(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or not torch.is_grad_enabled():
            return value
        leaf = value if value.requires_grad else value.detach().requires_grad_()
        self._inputs.append(leaf)
        return leaf

    def _leave(self, _: nn.Module, args: Any, output: Any) -> None:
        self._output = output

    def _checked(self) -> Tensor:
        if not self._inputs:
            raise ValueError(
                "JacobianRegularizer: no call of the model with a floating input was watched. Expected the model to be "
                "called, with gradients enabled, inside `with jacobian.watch():`. For token ids give it the part of "
                "the model behind the embedding."
            )
        if not isinstance(self._output, Tensor) or not self._output.requires_grad or not self._output.ndim:
            raise ValueError(
                f"JacobianRegularizer: the model returned {type(self._output).__name__}. Expected one tensor with a "
                "graph, samples first. Wrap the model in a module that returns its logits."
            )
        return self._output
