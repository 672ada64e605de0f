"""What part a layer plays in a network: in a plain chain, in a residual branch, before a norm, for attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unvanish.torch.init.residual import Branch, branches
from unvanish.torch.wiring import Wiring

Role = Literal["chain", "he", "zero", "small", "xavier"]


@dataclass(frozen=True, slots=True)
class Roles:
    """Roles by op index.

    Attributes:
        of: "chain" keeps the signal's length and codes it for the activation behind; "he" keeps the length on average;
            "zero" ends a residual branch; "small" does, too, but cannot start at zero; "xavier" projects for attention.
        ends: ops that end residual branches and are to start at zero, attention among them.
        branches: number of residual branches.
    """

    of: dict[int, Role]
    ends: frozenset[int]
    branches: int


def roles_of(wiring: Wiring, layers: list[int]) -> Roles:
    """The role of each of these ops."""
    around = branches(wiring)
    inside = {i for branch in around for i in branch.ops}
    closed = [branch for branch in around if branch.closed]
    ends = frozenset(end for branch in closed if (end := _last_layer(wiring, branch)) is not None)
    bent = {end for branch in closed if (end := _last_layer(wiring, branch, bent=True)) is not None}
    roles = {index: _role(wiring, index, ends, bent, inside) for index in layers}
    return Roles(roles, ends, len(around))


def _role(wiring: Wiring, index: int, ends: frozenset[int], bent: set[int], inside: set[int]) -> Role:
    if index in ends:
        return "zero"
    if index in bent:
        return "small"
    if _feeds(wiring, index, ("attention", "softmax"), ("view", "scale", "dropout", "normalization", "merge")):
        return "xavier"
    if index in inside or _feeds(wiring, index, ("normalization",), ("view", "dropout", "pool")):
        return "he"
    return "chain"


def _last_layer(wiring: Wiring, branch: Branch, *, bent: bool = False) -> int | None:
    """The layer that ends a branch: nothing behind it but views and dropout, and, if ``bent``, activations.

    A branch that ends in a norm or in a factor of its own is left to that.
    """
    index, through = branch.end, {"view", "dropout"} | ({"activation"} if bent else set())
    while index in branch.ops:
        op = wiring.ops[index]
        if op.kind in ("linear", "convolution", "transposed_convolution") or "out_proj_weight" in dict(op.parameters):
            return index
        if op.kind not in through or not op.inputs:
            return None
        index = op.inputs[0]
    return None


def _feeds(wiring: Wiring, index: int, kinds: tuple[str, ...], through: tuple[str, ...]) -> bool:
    """Whether an op of these kinds is reached with nothing but ``through`` between; a softmax at the end is a head."""
    waiting, seen = [index], {index}
    while waiting:
        for reader in wiring.readers(waiting.pop()):
            op = wiring.ops[reader]
            if op.kind in kinds and (op.kind != "softmax" or wiring.readers(reader)):
                return True
            if op.kind in through and reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    return False
