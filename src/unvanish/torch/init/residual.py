"""Residual branches: which layers of a forward pass a skip connection goes around."""

from __future__ import annotations

from dataclasses import dataclass

from unvanish.torch.wiring import Op, Wiring

_SUMS = frozenset({"add", "iadd", "radd", "sub", "isub"})
_LAYERS = frozenset({"linear", "convolution", "transposed_convolution", "recurrent", "attention"})


@dataclass(frozen=True, slots=True)
class Branch:
    """One residual sum: the ops of the long side, from its end backward.

    Attributes:
        merge: index of the sum.
        end: index of the last op of the branch.
        ops: all ops of the branch.
        closed: it reads the trunk and the batch only. One that reads other layers too, as cross-attention does, is
            their only way to the loss.
    """

    merge: int
    end: int
    ops: frozenset[int]
    closed: bool


def branches(wiring: Wiring) -> list[Branch]:
    """All residual branches, in execution order of their sums."""
    learned = _behind_layers(wiring)
    found = []
    for op in wiring.ops:
        if op.kind == "merge" and op.name in _SUMS and len(op.inputs) == 2 and min(op.inputs) >= -1:
            branch = _branch(wiring, op, learned)
            if branch is not None:
                found.append(branch)
    return found


def _behind_layers(wiring: Wiring) -> set[int]:
    """Ops whose output depends on a weight: not masks and positions made of the batch alone."""
    found: set[int] = set()
    for op in wiring.ops:
        if op.parameters or op.computed or found.intersection(op.inputs):
            found.add(op.index)
    return found


def _branch(wiring: Wiring, merge: Op, learned: set[int]) -> Branch | None:
    """The side with more layers, where both sides come from the same op and the other has at most one."""
    sides = _sides(wiring, merge.inputs)
    if sides is None:
        return None
    layers = [sum(_mixes(wiring.ops[i]) for i in side) for side in sides]
    long = 0 if layers[0] > layers[1] else 1
    if layers[0] == layers[1] or layers[1 - long] > 1:
        return None
    trunk = max(i for side, end in zip(sides, merge.inputs, strict=True) for i in _read(wiring, side, end))
    others = _read(wiring, sides[long], merge.inputs[long]) - {trunk}
    return Branch(merge.index, merge.inputs[long], frozenset(sides[long]), not others & learned)


def _read(wiring: Wiring, side: set[int], end: int) -> set[int]:
    """Ops outside a side that it reads; the other end where the side is empty."""
    return {i for op in side for i in wiring.ops[op].inputs} - side if side else {end}


def _mixes(op: Op) -> bool:
    return op.kind in _LAYERS and bool(op.parameters or op.computed)


def _sides(wiring: Wiring, ends: tuple[int, ...]) -> tuple[set[int], set[int]] | None:
    """Ops on either side back to the first op that both come from."""
    seen: tuple[set[int], set[int]] = (set(), set())
    edge = ({ends[0]}, {ends[1]})
    while edge[0] or edge[1]:
        newest = max(edge[0] | edge[1])
        if newest in edge[0] and newest in edge[1]:
            return seen
        if newest < 0:
            return None
        side = 0 if newest in edge[0] else 1
        edge[side].remove(newest)
        seen[side].add(newest)
        edge[side].update(wiring.ops[newest].inputs)
    return None
