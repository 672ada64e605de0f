"""What autograd nodes keep for the backward pass, and whether it can be looked at."""

from __future__ import annotations

from torch import Tensor

from unvanish.torch.probe.graph import Vertex

_REAL = frozenset({"float32", "float64", "float16", "bfloat16"})
_SAVED: dict[type, tuple[str, ...]] = {}


def readable(vertex: Vertex) -> bool:
    """Can the saved tensors of this node be read twice?  Checkpointing and offloading hooks allow it once."""
    if vertex.dtype not in _REAL:
        return False
    node = vertex.node
    try:
        for name in _saved_names(type(node)):
            saved = getattr(node, name)
            for part in saved if isinstance(saved, tuple | list) else (saved,):
                if part is not None and part.unpack_hook is not None:
                    return False
    except RuntimeError:  # the graph was freed
        return False
    return True


def kept_output(vertex: Vertex) -> Tensor | None:
    """What a node that keeps its output and nothing else put out; None where that cannot be read twice."""
    if vertex.dtype not in _REAL:
        return None
    try:
        output: Tensor | None = vertex.node._saved_result if vertex.node._raw_saved_result.unpack_hook is None else None
    except RuntimeError:  # the graph was freed
        return None
    return output


def _saved_names(kind: type) -> tuple[str, ...]:
    known = _SAVED.get(kind)
    if known is None:
        known = _SAVED[kind] = tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))
    return known


def signed(number: int) -> int:
    """A whole number that autograd kept, which shows negative ones as unsigned."""
    return int(number) - (1 << 64) if number >= 1 << 63 else int(number)
