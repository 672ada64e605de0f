"""Forward passes that change nothing, without dropout, and the model's output."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.wiring import Op, Wiring, trace
from unvanish.torch.wiring.calls import tensors_in

OnOp = Callable[[Op, tuple[Any, ...], dict[str, Any], Any], None]
Signature = tuple[Any, ...]


class RewiredError(ValueError):
    """A pass made other calls than the one before it."""

    def __init__(self) -> None:
        super().__init__(
            "UnitReset saw the model make different calls in two passes over the same batch. Units can be followed "
            "only where the same inputs take the same way. Switch random branches (layer drop, stochastic depth) off "
            "for the check, or put the model in eval() around it."
        )


def empty_batch(layer: str) -> ValueError:
    """What to raise where a batch has no samples."""
    return ValueError(
        f"UnitReset was shown a batch without samples: the units of {layer} had no input. Expected at least one "
        "sample, better hundreds. Give step() and check() a batch of training data, on every rank."
    )


def run(model: nn.Module, inputs: Any, on_op: OnOp, *, like: Signature | None = None) -> tuple[Wiring, list[Tensor]]:
    """One traced pass in the model's own mode, with dropout switched off.

    Dropout is noise: it would hide what a unit does, and the change of the output that a reset makes.  Dropout in place
    and within an attention stays on; as every pass begins with the same random state, it is the same in each.

    Args:
        model: the network.
        inputs: what it is called with.
        on_op: sees every call.
        like: the calls that are expected.

    Returns:
        The wiring, and the tensors the model returned.

    Raises:
        RewiredError: the model made other calls than those of ``like``.
    """
    returned: list[Any] = []

    def watch(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Tensor | None:
        if like is not None and (op.index >= len(like) or _call_of(op) != like[op.index]):
            raise RewiredError
        kept = _undropped(op, args, kwargs)
        on_op(op, args, kwargs, result if kept is None else kept)
        return kept

    handle = model.register_forward_hook(lambda module, args, output: returned.append(output))
    try:
        with _uncompiled():
            wiring = trace(model, inputs, on_op=watch)
    finally:
        handle.remove()
    if like is not None and len(wiring.ops) != len(like):
        raise RewiredError
    return wiring, tensors_in(returned[-1])  # of a model that calls itself, the outermost call returns last


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled parts of a model run as they are written: dynamo would compile our watching of each call."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to load it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile.*global hooks", UserWarning)  # ours, for this pass
        yield


def data_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The tensor that a call with one data input reads: torch's functions take it first."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def signature_of(wiring: Wiring) -> Signature:
    """What passes of the same structure share; their batches may differ in shape."""
    return tuple(_call_of(op) for op in wiring.ops)


def _call_of(op: Op) -> tuple[Any, ...]:
    return op.name, op.inputs, op.parameters


def in_place(op: Op) -> bool:
    """Does this call overwrite its input?"""
    name = str(getattr(op.function, "__name__", ""))
    return bool(op.arguments.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def _undropped(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if op.kind != "dropout" or not op.arguments.get("training", False) or in_place(op):
        return None
    return data_of(args, kwargs).detach()  # another tensor of the same memory: its maker is the dropout
