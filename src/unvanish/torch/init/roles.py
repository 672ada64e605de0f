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
        ends: ops that end residual branches and are to start at zero, attention and norms among them.
        bent: ops that end residual branches but for an activation, and are to start small.
        branches: number of residual branches.
    """

    of: dict[int, Role]
    ends: frozenset[int]
    bent: frozenset[int]
    branches: int


def roles_of(wiring: Wiring, layers: list[int]) -> Roles:
    """The role of each of these ops."""
    around = branches(wiring)
    inside = {i for branch in around for i in branch.ops}
    closed = [branch for branch in around if branch.closed]
    ends = _own(wiring, [_last(wiring, branch) for branch in closed])
    bent = _own(wiring, [_last(wiring, branch, bent=True) for branch in closed]) - ends
    roles = {index: _role(wiring, index, ends, bent, inside) for index in layers}
    return Roles(roles, ends, bent, len(around))


def _role(wiring: Wiring, index: int, ends: frozenset[int], bent: frozenset[int], inside: set[int]) -> Role:
    if index in ends:
        return "zero"
    if index in bent:
        return "small"
    if _feeds(wiring, index, ("attention", "softmax"), ("view", "scale", "dropout", "normalization", "merge")):
        return "xavier"
    if index in inside or _feeds(wiring, index, ("normalization",), ("view", "dropout", "pool")):
        return "he"
    return "chain"


def _last(wiring: Wiring, branch: Branch, *, bent: bool = False) -> int | None:
    """The layer or norm that ends a branch: nothing behind it but views and dropout, and, if ``bent``, activations.

    A zero layer in front of a norm would be divided by the root of its epsilon; the norm's own weight is zero instead
    (Goyal et al. 2017, arXiv:1706.02677, section 5.1). A branch that ends in a factor of its own is left to that.
    """
    index, through = branch.end, {"view", "dropout"} | ({"activation"} if bent else set())
    while index in branch.ops:
        op = wiring.ops[index]
        if op.kind in ("linear", "convolution", "transposed_convolution") or "out_proj_weight" in dict(op.parameters):
            return index
        if op.kind == "normalization" and op.parameter("weight") is not None:
            return index
        if op.kind not in through or not op.inputs:
            return None
        index = op.inputs[0]
    return None


def _own(wiring: Wiring, ends: list[int | None]) -> frozenset[int]:
    """Those whose weight ends branches wherever it is used: a norm that the trunk shares must let it through."""
    found = {end for end in ends if end is not None}
    elsewhere = {name for op in wiring.ops if op.index not in found for _, name in op.parameters}
    return frozenset(
        end
        for end in found
        if wiring.ops[end].kind != "normalization" or wiring.ops[end].parameter("weight") not in elsewhere
    )


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
