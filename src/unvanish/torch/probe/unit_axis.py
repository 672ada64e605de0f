"""Along which axis the units of an activation lie: that of the layer it follows, wherever that axis was moved since."""

from __future__ import annotations

from unvanish.torch.probe.graph import Vertex
from unvanish.torch.probe.saved import signed

_LAYERS = ("linear", "convolution", "recurrent", "attention", "embedding")


def unit_axis(vertex: Vertex) -> int:
    """Axis 1 behind a convolution, the last behind other layers, as moved by what lies between."""
    between: list[Vertex] = []
    while vertex.below:
        above, vertex = vertex, vertex.below[0]
        if above.hidden:
            between.append(above)
        if vertex.kind in _LAYERS:
            break
    axis = 1 if vertex.kind == "convolution" else len(vertex.shape) - 1
    shape = vertex.shape
    for moved in reversed(between):
        axis, shape = _moved(moved, axis, shape), moved.shape
    return axis


def _moved(vertex: Vertex, axis: int, shape: tuple[int, ...]) -> int:
    """Where this axis of its input went."""
    count = len(shape)
    if vertex.stem == "Permute":
        return [signed(dim) % count for dim in vertex.node._saved_dims].index(axis)
    if vertex.stem == "Transpose":
        pair = [signed(dim) % count for dim in (vertex.node._saved_dim0, vertex.node._saved_dim1)]
        return pair[1 - pair.index(axis)] if axis in pair else axis
    if axis == count - 1 and vertex.shape and shape and vertex.shape[-1] == shape[-1]:
        return len(vertex.shape) - 1  # counted from the end: samples and time are folded and unfolded before it
    return min(axis, len(vertex.shape) - 1)
