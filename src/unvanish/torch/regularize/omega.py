"""Pascanu's Omega: the gradient's norm shall stay what it is from each state to the one before it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from unvanish.torch.regularize.cells import loop_parts
from unvanish.torch.regularize.checks import check_model
from unvanish.torch.regularize.kernels import kernel_parts
from unvanish.torch.regularize.layers import LayerStep, layer_parts, layer_steps
from unvanish.torch.regularize.ratios import Part, with_gradients
from unvanish.torch.regularize.recorder import CellCall, KernelCall, Recorder


class OmegaRegularizer:
    r"""Penalty on every transition at which the gradient shrinks or grows.

    .. math::

        \Omega = \sum_k \Big( \frac{\| \frac{\partial C}{\partial x_{k+1}} \frac{\partial x_{k+1}}{\partial x_k} \|}
                                   {\| \frac{\partial C}{\partial x_{k+1}} \|} - 1 \Big)^2

    averaged over the samples that a gradient reaches.  The states :math:`x_k` are, as in the paper, the sums before
    the activation: :math:`x_{k+1} = W \sigma(x_k) + \ldots`; for ``nn.LSTM`` and ``nn.GRU`` they are (h, c) and h.
    As in the paper, only the immediate derivative with respect to the weights counts: the states and
    :math:`\partial C / \partial x_{k+1}` are constants.  The value has this gradient and no second one.

    What the transitions are is found in your forward pass, whatever its code looks like:

    - steps through time of ``nn.RNN`` / ``LSTM`` / ``GRU`` (any number of layers, both directions), of their cells, and
      of loops that apply one weight to what it made itself;
    - in a network without such a loop, the way from each linear layer or convolution to the one layer that reads it.
      A layer behind a sum or concatenation of several others is left out, with a warning: residual connections keep
      the gradient by themselves.

    A sample whose gradient is exactly 0 at :math:`x_{k+1}` has no ratio and counts for nothing.  Cotangents are
    measured relative to their own size, so that 1e-30 is as good as 1; in ``nn.RNN`` they are followed further down,
    beyond the range of float32.

    Cost of a training step, as a ratio to plain forward and backward (one CPU thread; measured numbers, with those of
    other implementations, are in ``benchmarks/RESULTS.md``, Regularisation): about 2 for an MLP or CNN, 3 to 4 for
    ``nn.RNN`` and 7 to 9 for ``nn.LSTM``, whose fused kernels cannot show their states.  The penalty runs one backward
    pass of its own (down to the states, not to the weights), so tensor hooks of yours run once more.

    Whether it helps: mean test accuracy over three seeds, without / with (strength), RMSprop, default weights unless
    said.  Digits, MLPs of 20 layers: tanh .19 / .75 (1), ReLU .08 / .79 (1); of 40 layers: .09 / .36, .09 / .37, which
    is no cure.  ``nn.RNN`` that remembers over 30 steps: .12 / .96 (0.1), but .75 with strength 1; orthogonal weights
    and a large learning rate .37 / 1.00 (0.1), over 100 steps .31 / .90 (1); over 100 steps from default weights .13 /
    .28, no cure.  So: mend the initialisation first, and use Omega to keep what it gave.  For the tanh MLPs
    :class:`SoftOrthogonality` did more (.94 and .76), for ReLU and recurrent nets less.

    Args:
        model: the network; its parameters' names appear in messages, and only they are regularised.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> omega = OmegaRegularizer(model)
        >>> with omega.watch():
        ...     loss = model(torch.ones(5, 4)).square().mean()
        >>> penalty = omega.penalty(loss)
        >>> (loss + 0.1 * penalty).backward()
        >>> 0 < penalty.item() < 1
        True

    Source: Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks, section 3.3.
    """

    def __init__(self, model: nn.Module) -> None:
        check_model("OmegaRegularizer", model)
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._record: Recorder | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Around the forward pass; what an earlier pass left is forgotten."""
        self._record = Recorder()
        with self._record:
            yield

    def penalty(self, loss: Tensor) -> Tensor:
        """Omega of the watched forward pass, before its backward pass.

        Args:
            loss: the scalar C, made inside :meth:`watch`.

        Returns:
            A scalar >= 0 in the loss's dtype (at least float32), dimensionless, differentiable with respect to the
            weights of the transitions.

        Raises:
            ValueError: nothing was watched, the loss has no graph, or there is no transition that can be measured.
        """
        record = self._checked(loss)
        steps, merged, _ = layer_steps(record.layers)
        cells = _cell_steps(record.cells)
        if cells or record.kernels:  # a network through time: what happens within a step is not the matter
            steps, merged = [], []
        if not steps and not cells and not record.kernels:
            raise ValueError(_NOTHING.format(len(record.layers), len(record.cells), record.packed))
        if merged or record.packed:
            self._warn_left_out(record, merged_weights=[call.weight for call in merged])
        arrived = _sweep(loss, steps, cells, record.kernels)
        parts = list(_parts(arrived, steps, cells, record.kernels))
        return self._sum(loss, parts)

    def _checked(self, loss: Tensor) -> Recorder:
        if self._record is None:
            raise ValueError(
                "Omega: no forward pass was watched. Expected the loss to be computed inside `with omega.watch():`. "
                "Put the model's call there, and call `omega.penalty(loss)` after it."
            )
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            tensor = isinstance(loss, Tensor)
            what = f"has shape {tuple(loss.shape)} and requires_grad={loss.requires_grad}" if tensor else f"is {loss!r}"
            raise ValueError(
                f"Omega: the loss {what}. Expected a scalar with a graph. Pass the loss itself, before `.backward()`, "
                "not `.item()` or a detached copy."
            )
        for kernel in self._record.kernels:
            if kernel.dropout or any(part.shape[-1] != kernel.outputs.shape[-1] // kernel.directions
                                     for part in kernel.initial):  # fmt: skip
                raise ValueError(_HIDDEN.format(kernel.name, kernel.dropout))
        return self._record

    def _warn_left_out(self, record: Recorder, merged_weights: list[Tensor]) -> None:
        names = ", ".join(self._names.get(id(weight), "a computed weight") for weight in merged_weights[:5])
        more = f" and {len(merged_weights) - 5} more" if len(merged_weights) > 5 else ""
        left = f"{names}{more} (behind a sum of several layers)" if merged_weights else ""
        packed = f"{record.packed} packed sequences" if record.packed else ""
        warnings.warn(f"Omega leaves out {' and '.join(filter(None, (left, packed)))}.", stacklevel=3)

    def _sum(self, loss: Tensor, parts: list[Part]) -> Tensor:
        if not parts or int(torch.stack([part.seen.to(loss.device) for part in parts]).sum()) == 0:
            warnings.warn(
                "Omega is 0 because no gradient reaches any transition: the signal is dead or out of the range of "
                f"{loss.dtype}. It can keep a gradient alive, not bring it back: mend the initialisation first.",
                stacklevel=3,
            )
        dtype = torch.promote_types(loss.dtype, torch.float32)
        value = torch.stack([loss.new_zeros((), dtype=dtype), *(p.value.to(loss.device, dtype) for p in parts)]).sum()
        gradients = [
            (weight, rule)
            for part in parts
            for weight, rule in part.gradients
            if id(weight._base if weight._is_view() else weight) in self._names or not weight.is_leaf
        ]
        return with_gradients(value, gradients)


_NOTHING = (
    "Omega: the watched pass has no transition between states ({} layers, {} cell steps, {} packed sequences were "
    "seen). Expected a recurrent layer over padded sequences, a loop over time, or linear layers or convolutions one "
    "after the other. Watch the pass of the plain model (not one made by torch.compile or TorchScript), pass "
    "tensors rather than PackedSequence, and leave residual networks as they are."
)
_HIDDEN = (
    "Omega: a fused {} has dropout {} between its layers or a projection of its state. Expected one whose hidden "
    "states can be computed again. Use dropout=0 and proj_size=0, or one layer for each nn.RNN / LSTM / GRU with "
    "nn.Dropout between them."
)


def _cell_steps(calls: list[CellCall]) -> list[CellCall]:
    """The calls that read the state which the same cell made before."""
    made = {call.out[0].node: call for call in calls}
    return [c for c in calls if c.into in made and made[c.into].weights[1] is c.weights[1]]


def _sweep(
    loss: Tensor, steps: list[LayerStep], cells: list[CellCall], kernels: list[KernelCall]
) -> dict[GradientEdge, Tensor | None]:
    """The loss's gradient at every place that matters, in one pass that leaves the graph as it is."""
    places = [edge for step in steps for edge in (step.into, step.call.out)]
    places += chain.from_iterable(call.out for call in cells)
    places += chain.from_iterable(kernel.out for kernel in kernels)
    places = list(dict.fromkeys(places))
    found = torch.autograd.grad(loss, places, retain_graph=True, allow_unused=True)
    return dict(zip(places, found, strict=True))


def _parts(
    arrived: dict[GradientEdge, Tensor | None],
    steps: list[LayerStep],
    cells: list[CellCall],
    kernels: list[KernelCall],
) -> Iterator[Part]:
    yield from layer_parts(steps, arrived)
    yield from loop_parts(cells, arrived)
    for kernel in kernels:
        yield from kernel_parts(kernel, [arrived[edge] for edge in kernel.out])
