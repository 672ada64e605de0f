"""Penalties on weights that are not orthogonal, so that no direction is lost and none explodes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from unvanish.torch.regularize.checks import check_model, check_whole
from unvanish.torch.regularize.matrices import weight_places
from unvanish.torch.regularize.ratios import times, with_gradients


class _Orthogonality(ABC):
    """Sum over the weights of a judgement whose gradient is known in closed form."""

    def __init__(self, model: nn.Module) -> None:
        check_model(type(self).__name__, model)
        self._places = weight_places(model)
        if not self._places:
            raise ValueError(
                f"{type(self).__name__}: {type(model).__name__} has no trainable weight of a linear layer, convolution "
                "or recurrent layer. Expected at least one. Pass the model that holds the layers, and unfreeze them."
            )

    def penalty(self) -> Tensor:
        """The penalty at the present weights.

        Returns:
            A scalar >= 0, dimensionless, with a gradient to the weights (and no second one).
        """
        values, gradients = [], []
        for index, place in enumerate(self._places):
            weight = place.weight()
            with torch.no_grad():
                wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
                value, gradient = self._judge(index, place.matrices(wide))
                values.append(value)
                gradients.append((weight, times(place.restored(gradient, weight))))
        return with_gradients(torch.stack([value.to(values[0]) for value in values]).sum(), gradients)

    @abstractmethod
    def _judge(self, index: int, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient for (blocks, rows, columns), rows >= columns."""


class SoftOrthogonality(_Orthogonality):
    r"""How far the columns of each weight are from orthonormal.

    .. math:: \sum_W \| W^T W - I \|_F^2, \qquad \text{gradient } 4 W (W^T W - I)

    for a tall W, and with :math:`W W^T` for a wide one, the only one of the two that can be the identity.  Linear
    weights, convolutions (kernels flattened, group by group) and the state-to-state weights of recurrent layers
    (gate by gate) count; embeddings, biases and frozen weights do not.

    Costs two products of square matrices for each weight, whatever the batch: a step takes 2 to 2.5 times as long for
    an MLP (nearly 3 by automatic differentiation), 1.0 to 1.3 for convolutions and recurrent layers (one CPU thread;
    measured numbers are in ``benchmarks/RESULTS.md``, Regularisation).  With strength 0.01 tanh MLPs of 10 and 20
    default layers went from .75 and .19 to .95 and .94 test accuracy on digits, three seeds; ``nn.RNN`` that
    remembers over 30 steps from .12 to .96.

    Args:
        model: the network.

    Example:
        >>> model = torch.nn.RNN(3, 4)
        >>> _ = torch.nn.init.orthogonal_(model.weight_hh_l0)
        >>> SoftOrthogonality(model).penalty().item() < 1e-9
        True

    Source: Bansal, Chen and Wang 2018, Can we gain more from orthogonality regularizations, section 3.1.
    """

    def _judge(self, index: int, matrices: Tensor) -> tuple[Tensor, Tensor]:
        residual = matrices.mT @ matrices
        residual.diagonal(dim1=1, dim2=2).sub_(1)
        return residual.square().sum(), 4 * (matrices @ residual)


class SpectralIsometry(_Orthogonality):
    r"""The worst direction of each weight (SRIP): by how much it stretches or shrinks.

    .. math:: \sum_W \| R \|_2 \approx \sum_W \| R v \|, \qquad R = W^T W - I

    (:math:`W W^T - I` for a wide W) with v from a power iteration: every call makes one step, :math:`v \leftarrow
    Rv / \|Rv\|`, and the next call goes on from there, as weights change little from one step of training to the next.
    The estimate never exceeds the norm, and has its gradient where v has arrived:
    :math:`(Wz) v^T + (Wv) z^T` with :math:`z = Rv / \|Rv\|`.

    The same weights count as in :class:`SoftOrthogonality`.  A step takes 1.2 to 1.4 times as long for an MLP (nearly
    3 as in the paper, by automatic differentiation of W^T W - I), less elsewhere.  Cheap, but it moves one direction
    at a time: in the experiments named there it did little (.85 and .20; .12 to .63 for the RNN).

    Args:
        model: the network.
        seed: of the first v, drawn from a stream of its own.

    Example:
        >>> model = torch.nn.Linear(3, 3, bias=False)
        >>> _ = model.weight.data.copy_(torch.diag(torch.tensor([2.0, 1.0, 0.5])))
        >>> isometry = SpectralIsometry(model)
        >>> for _ in range(20):
        ...     penalty = isometry.penalty()
        >>> round(penalty.item(), 4)  # 2^2 - 1
        3.0

    Source: Bansal, Chen and Wang 2018, Can we gain more from orthogonality regularizations, section 3.4.
    """

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        super().__init__(model)
        check_whole("SpectralIsometry", "seed", seed, None, "Give 0: it is drawn from a stream of its own.")
        self._generator = torch.Generator().manual_seed(seed)
        self._directions: dict[int, Tensor] = {}

    def _judge(self, index: int, matrices: Tensor) -> tuple[Tensor, Tensor]:
        direction = self._direction(index, matrices)
        image = matrices @ direction  # (blocks, rows, 1)
        moved = matrices.mT @ image - direction
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        following = torch.where(length > 0, moved / length, 0.0)
        self._directions[index] = torch.where(length > 0, following, direction)
        gradient = torch.baddbmm(image @ following.mT, matrices @ following, direction.mT)
        return length.sum(), gradient

    def _direction(self, index: int, matrices: Tensor) -> Tensor:
        known = self._directions.get(index)
        shape = (matrices.shape[0], matrices.shape[2], 1)
        if known is None:
            drawn = torch.randn(shape, generator=self._generator, dtype=torch.float64)
            known = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
        return known.to(matrices)
