"""The weights of a model as matrices, in the shape in which orthogonality means something."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_GATES = {nn.RNN: 1, nn.RNNCell: 1, nn.GRU: 3, nn.GRUCell: 3, nn.LSTM: 4, nn.LSTMCell: 4}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight lies: read at every use, so that a parametrised weight is the current one."""

    module: nn.Module
    attribute: str
    blocks: int  # gates or groups, stacked along the first axis

    def weight(self) -> Tensor:
        """The weight as the layer has it."""
        found = getattr(self.module, self.attribute)
        assert isinstance(found, Tensor)
        return found

    def matrices(self, weight: Tensor) -> Tensor:
        """(blocks, rows, columns) with rows >= columns: a wide block is transposed, so that W^T W = I can hold."""
        blocks: Tensor = weight.unflatten(0, (self.blocks, -1)).flatten(2)
        return blocks if blocks.shape[1] >= blocks.shape[2] else blocks.transpose(1, 2)

    def restored(self, matrices: Tensor, weight: Tensor) -> Tensor:
        """What has the shape of :meth:`matrices`, in the shape of the weight."""
        rows = weight.shape[0] // self.blocks
        blocks = matrices if matrices.shape[1] == rows else matrices.transpose(1, 2)
        return blocks.reshape(weight.shape)


def weight_places(model: nn.Module) -> list[Place]:
    """Weights of linear layers and convolutions, and the state-to-state weights of recurrent layers.

    A kernel is flattened: (out, in * size) for each group; a transposed one (in, out * size).  Recurrent weights count
    gate by gate.  A shared weight counts once, a frozen one not at all.
    """
    places: dict[tuple[int, str], Place] = {}
    for module in model.modules():
        for attribute, blocks in _weights_of(module):
            place = Place(module, attribute, blocks)
            weight = place.weight()
            key = (id(weight), "") if isinstance(weight, nn.Parameter) else (id(module), attribute)
            if weight.requires_grad:
                places.setdefault(key, place)
    return list(places.values())


def _weights_of(module: nn.Module) -> list[tuple[str, int]]:
    if isinstance(module, nn.Linear):
        return [("weight", 1)]
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        return [("weight", module.groups)]
    gates = next((count for kind, count in _GATES.items() if isinstance(module, kind)), 0)
    return [(name, gates) for name, _ in module.named_parameters(recurse=False) if name.startswith("weight_hh")]
