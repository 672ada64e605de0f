"""Activations that users write by hand, of several ops or of one that no table knows, found by trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush

import torch
from torch import Tensor, nn

from unvanish.torch.rehearsal.copies import preserved_randomness
from unvanish.torch.wiring.ops import Op, Wiring, wiring_of

_KINDS = frozenset({"activation", "scale", "merge", "other"})
_CASTS = frozenset({"clone", "contiguous", "detach", "to", "type", "type_as", "float", "double", "half", "bfloat16"})
_NUMBERS = (-2.5, -1.0, -0.3, 0.0, 0.2, 0.9, 3.0)

_Trial = tuple[Tensor, Tensor]


def with_activations(wiring: Wiring, like: Tensor) -> Wiring:
    r"""The wiring in which a handwritten activation, such as ``x * torch.sigmoid(x)``, is one op of kind "activation".

    It stands in the place of its last op; its ``inputs`` are the one op whose output it is a function of, its
    ``members`` what it was put together from.  These stay where they are, as ops that read nothing and that nobody
    reads.  Taken together are all ops behind one output that compute a function of it element by element, which is
    tried with numbers and not looked up, if one of them alone is read from outside and the function is no straight
    line.  A function of a single op that is known as an activation stays what it is.

    Args:
        wiring: from :func:`trace`.
        like: a tensor of the dtype and device in which the functions are tried.

    Example:
        >>> from unvanish.torch.wiring import trace
        >>> class Swish(nn.Module):
        ...     def forward(self, x):
        ...         return x * torch.sigmoid(x)
        >>> net = nn.Sequential(nn.Linear(4, 3), Swish(), nn.Linear(3, 2))
        >>> wiring = trace(net, torch.ones(5, 4))
        >>> wiring.activation_after(0) is None  # the output of op 0 is read by a sigmoid and by a product
        True
        >>> op = with_activations(wiring, torch.ones(1)).activation_after(0)
        >>> op.name, op.kind, op.inputs, op.members
        ('sigmoid*mul', 'activation', (0,), (1, 2))
    """
    ops, taken = list(wiring.ops), set[int]()
    with preserved_randomness(), torch.no_grad():
        for source in wiring.ops:
            if source.index in taken or source.outputs > 1:
                continue
            region = _region(wiring, source.index, like)
            taken |= set(region)
            one = _activation(wiring, source.index, region, like)
            if one is not None:
                for index in one.members:
                    ops[index] = replace(ops[index], kind="other", inputs=())
                ops[one.index] = one
    return wiring_of(ops)


def together(ops: Sequence[Op], source: int) -> Op:
    """Ops that compute a function of the output of op ``source`` as one activation; the last has its value."""
    last = ops[-1]

    def call(x: Tensor) -> Tensor:
        values = {source: x}
        for op in ops:
            values[op.index] = op.apply(*(values[index] for index in op.inputs))
        return values[last.index]

    return replace(
        last,
        name="*".join(op.name for op in ops),
        kind="activation",
        inputs=(source,),
        parameters=tuple(dict.fromkeys(read for op in ops for read in op.parameters)),
        computed=tuple(dict.fromkeys(read for op in ops for read in op.computed)),
        function=call,
        arguments={},
        members=tuple(op.index for op in ops),
        _call=call,
    )


def _region(wiring: Wiring, source: int, like: Tensor) -> list[int]:
    """Ops that compute an elementwise function of ``source`` and of nothing else, in execution order."""
    values = {source: _probes(like)}
    waiting = list(wiring.readers(source))
    heapify(waiting)
    while waiting:
        op = wiring.ops[heappop(waiting)]
        if op.index in values or not _may_be(op) or not all(index in values for index in op.inputs):
            continue
        tried = _tried(op, [values[index] for index in op.inputs])
        if tried is not None:
            values[op.index] = tried
            for reader in wiring.readers(op.index):
                heappush(waiting, reader)
    return sorted(set(values) - {source})


def _activation(wiring: Wiring, source: int, region: list[int], like: Tensor) -> Op | None:
    """The region as one activation; None where it is several, needs no change, or is a straight line."""
    inside = set(region)
    exits = [i for i in region if not wiring.readers(i) or not inside.issuperset(wiring.readers(i))]
    if len(exits) != 1 or (len(region) == 1 and wiring.ops[region[0]].kind == "activation"):
        return None
    one = together([wiring.ops[index] for index in region], source)
    return None if _straight(one, like) else one


def _may_be(op: Op) -> bool:
    unseen = isinstance(getattr(op.function, "__self__", None), nn.Module)  # what such a module does inside, nobody saw
    return op.outputs == 1 and not unseen and (op.kind in _KINDS or (op.kind == "view" and op.name in _CASTS))


def _probes(like: Tensor) -> _Trial:
    """Numbers, every one twice, in opposite orders; and the same with the first one another."""
    numbers = torch.tensor(_NUMBERS + _NUMBERS[::-1], dtype=like.dtype, device=like.device)
    moved = numbers.clone()
    moved[0] = 1.7
    return numbers, moved


def _tried(op: Op, inputs: list[_Trial]) -> _Trial | None:
    """An op's values for the two probes, if each depends on the same element of the inputs alone, wherever it lies."""
    try:
        plain, moved = (op.apply(*(trial[which] for trial in inputs)) for which in (0, 1))
    except Exception:  # whatever a user's function says to a tensor of another shape: it is not elementwise
        return None
    half = len(_NUMBERS)
    if plain.shape != inputs[0][0].shape or moved.shape != plain.shape:
        return None
    # the last elements of a tensor may be rounded otherwise than the first: not by the same instructions
    rounding = 8 * torch.finfo(plain.dtype).eps * float(plain.abs().max()) if plain.is_floating_point() else 0.0
    alike = _same(plain[:half], plain[half:].flip(0), rounding) and _same(plain[1:], moved[1:], 0.0)
    return (plain, moved) if alike else None


def _same(a: Tensor, b: Tensor, within: float) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=0, atol=within, equal_nan=True)


def _straight(one: Op, like: Tensor) -> bool:
    """Is it a straight line, as far as its dtype can tell, or no function to real numbers?"""
    middle = torch.linspace(-3, 3, 13, dtype=like.dtype, device=like.device)
    for step in (0.5, 2.0, 10.0, 40.0):
        values = torch.stack([one.apply(middle - step), one.apply(middle), one.apply(middle + step)])
        if not values.is_floating_point():
            return True
        low, at, high = values.double()
        if bool(((low + high - 2 * at).abs() > 16 * torch.finfo(values.dtype).eps * values.abs().amax(0)).any()):
            return False
    return True
