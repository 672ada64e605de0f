"""The ops of one forward pass and what can be asked of them: plain values, no tensors of the pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unvanish.torch.wiring.kinds import OpKind

BATCH, UNSEEN = -1, -2
_LAYERS = frozenset({"linear", "convolution", "transposed_convolution", "recurrent", "embedding"})
_THROUGH = frozenset({"view", "pool", "dropout", "normalization"})


@dataclass(frozen=True, slots=True)
class Op:
    """One call of a torch function in the forward pass.

    Attributes:
        index: position in execution order, and in :attr:`Wiring.ops`.
        name: the function as it is called: "linear", "relu", "add", "layer_norm".
        kind: what it does to the signal.
        module: path of the innermost module in whose forward it ran, "" for the model itself.
        inputs: the ops whose outputs it reads, in argument order; -1 the batch itself, -2 made by something unseen
            (a custom ``autograd.Function``, for instance).
        parameters: (role, full name of the parameter): ``(("weight", "fc1.weight"), ("bias", "fc1.bias"))``.
        computed: (role, names of the parameters below) where a tensor was computed from parameters alone, such as
            the weight of a parametrised layer.
        function: the torch function.
        arguments: its arguments that are not tensors, by name.
        shape: of its (first) output.
        outputs: how many tensors it returned.
        members: of an activation of several ops (:func:`~unvanish.torch.wiring.with_activations`), these ops.
    """

    index: int
    name: str
    kind: OpKind
    module: str
    inputs: tuple[int, ...]
    parameters: tuple[tuple[str, str], ...]
    computed: tuple[tuple[str, tuple[str, ...]], ...]
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]
    _call: Callable[..., Any] = field(repr=False, compare=False)
    outputs: int = 1
    members: tuple[int, ...] = ()

    def apply(self, *x: Tensor) -> Tensor:
        """The same call on other tensors of any shape, one for each of ``inputs``: for elementwise ops."""
        result = self._call(*(one.clone() for one in x))
        assert isinstance(result, Tensor), f"{self.name} does not return one tensor"
        return result

    def parameter(self, role: str) -> str | None:
        """Full name of the parameter in this role ("weight", "bias"), None where there is none."""
        return dict(self.parameters).get(role)


@dataclass(frozen=True, slots=True)
class Wiring:
    """All ops of one forward pass, in execution order."""

    ops: tuple[Op, ...]
    _readers: tuple[tuple[int, ...], ...] = field(repr=False)

    def readers(self, index: int) -> tuple[int, ...]:
        """The ops that read the output of op ``index``, in execution order."""
        return self._readers[index]

    def layers(self) -> tuple[Op, ...]:
        """The ops with weights that mix units, in execution order; a shared layer once for each call."""
        return tuple(op for op in self.ops if op.kind in _LAYERS and (op.parameters or op.computed))

    def following(self, index: int) -> Iterator[Op]:
        """The ops after ``index`` while there is one reader only, up to and including the first with several inputs."""
        readers = self.readers(index)
        while len(readers) == 1:
            op = self.ops[readers[0]]
            yield op
            if len(op.inputs) > 1:
                return
            readers = self.readers(op.index)

    def activation_after(self, index: int) -> Op | None:
        """The first activation behind an op, with nothing but views, pools, dropout and normalisation between."""
        for op in self.following(index):
            if op.kind == "activation":
                return op
            if op.kind not in _THROUGH:
                return None
        return None


def wiring_of(ops: list[Op]) -> Wiring:
    """The wiring of ops in execution order."""
    readers: list[list[int]] = [[] for _ in ops]
    for op in ops:
        for source in dict.fromkeys(op.inputs):
            if source >= 0:
                readers[source].append(op.index)
    return Wiring(tuple(ops), tuple(tuple(found) for found in readers))
