"""One forward pass under a ``TorchFunctionMode``: every torch function the model calls, and who reads whose output.

It sees functional calls, residual sums, shared modules and any Python control flow, as it only watches the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from unvanish.torch.rehearsal.copies import preserved_randomness
from unvanish.torch.wiring.calls import replay, roles_of, tensors_in
from unvanish.torch.wiring.kinds import kind_of, plain_name
from unvanish.torch.wiring.ops import BATCH, UNSEEN, Op, Wiring, wiring_of

Watcher = Callable[[Op, tuple[Any, ...], dict[str, Any], Any], Tensor | None]
_Read = tuple[Any, Tensor, bool, int]
_IN_PLACE_ITEM = "setitem"


def trace(model: nn.Module, inputs: Any, *, on_op: Watcher | None = None) -> Wiring:
    """Run ``model(inputs)`` once without gradients and record how its ops are wired.

    Buffers, random streams and ``.grad`` are the same afterwards, bit for bit, and so are the weights unless
    ``on_op`` changes them.

    Args:
        model: any network; its training mode is left as it is.
        inputs: what the model is called with: one tensor, a tuple of positional or a mapping of keyword arguments.
        on_op: called after each op as ``on_op(op, args, kwargs, result)``; a tensor it returns replaces the result,
            so that a layer can be changed and the pass go on with its new output.

    Returns:
        The wiring.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> wiring = trace(net, torch.ones(5, 4))
        >>> [(op.name, op.module, op.inputs) for op in wiring.ops]
        [('linear', '0', (-1,)), ('tanh', '1', (0,)), ('linear', '2', (1,))]
    """
    args, kwargs = _call_arguments(inputs)
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper: a compiled forward cannot be watched
    recorder = _Recorder(model, (args, kwargs), on_op)
    with preserved_randomness(), _preserved_buffers(model), torch.no_grad(), recorder.scopes(), recorder:
        model(*args, **kwargs)
    return wiring_of(recorder.ops)


def _call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


@contextmanager
def _preserved_buffers(model: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    places = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for now, before in places:  # a forward pass may put another tensor in a buffer's place
            now.clear()
            now.update(before)
        with torch.no_grad():
            for buffer, value in kept:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


class _Recorder(TorchFunctionMode):
    """Follows each tensor from the op that made it to the ops that read it."""

    def __init__(self, model: nn.Module, inputs: Any, on_op: Watcher | None) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self._on_op = on_op
        self._module_names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = [""]
        self._made_by: Any = WeakIdKeyDictionary()  # tensor -> op index, or BATCH
        self._parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        self._constants: Any = WeakIdKeyDictionary()  # tensor computed from parameters and buffers -> their names
        for buffer in model.buffers():
            self._constants[buffer] = ()
        for tensor in tensors_in(inputs):
            self._made_by[tensor] = BATCH

    @contextmanager
    def scopes(self) -> Iterator[None]:
        """Know which module is running."""
        handles = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._stack.append(self._module_names.get(id(module), self._stack[-1]))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        for tensor in tensors_in(output):
            if self._source(tensor) == UNSEEN and self._is_data(tensor):
                self._record_unseen(module, args, tensor)
        self._stack.pop()

    def _record_unseen(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """A module whose output came from something no mode sees: an ``autograd.Function``, a scripted module."""
        sources = tuple(self._source(tensor) for tensor in tensors_in(args) if self._is_data(tensor))
        named = tuple(
            (role, self._parameters[id(p)]) for role, p in module.named_parameters() if id(p) in self._parameters
        )
        name, path = type(module).__name__, self._stack[-1]
        op = Op(len(self.ops), name, "other", path, sources, named, (), module.forward, {}, tuple(output.shape), module)
        self._made_by[output] = op.index
        self.ops.append(op)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = self._read(args, kwargs)  # before the call: an in-place op changes who made its input
        result = func(*args, **kwargs)
        name = plain_name(func)
        outputs = [args[0]] if name == _IN_PLACE_ITEM else tensors_in(result)
        if not outputs:
            return result
        if not any(is_data for _, _, is_data, _ in sources):
            self._keep_constant(sources, outputs)
            return result
        op = self._op(name, func, args, kwargs, sources, outputs)
        for tensor in outputs:
            self._made_by[tensor] = op.index
        self.ops.append(op)
        return self._watched(op, args, kwargs, result)

    def _watched(self, op: Op, args: Any, kwargs: Any, result: Any) -> Any:
        replaced = self._on_op(op, args, kwargs, result) if self._on_op is not None else None
        if replaced is None:
            return result
        self._made_by[replaced] = op.index
        return replaced

    def _read(self, args: Any, kwargs: Any) -> list[_Read]:
        """(position or keyword, tensor, depends on the batch, made by) for each tensor among the arguments."""
        found: list[_Read] = []
        for place, value in (*enumerate(args), *kwargs.items()):
            for tensor in tensors_in(value):
                found.append((place, tensor, self._is_data(tensor), self._source(tensor)))
        return found

    def _is_data(self, tensor: Tensor) -> bool:
        return id(tensor) not in self._parameters and tensor not in self._constants

    def _source(self, tensor: Tensor) -> int:
        return int(self._made_by.get(tensor, UNSEEN))

    def _keep_constant(self, sources: list[_Read], outputs: list[Tensor]) -> None:
        """Remember outputs computed from parameters, buffers or nothing at all: they carry no data."""
        below = tuple(dict.fromkeys(name for _, tensor, _, _ in sources for name in self._names_below(tensor)))
        for tensor in outputs:
            if id(tensor) not in self._parameters:
                self._constants[tensor] = below

    def _names_below(self, tensor: Tensor) -> tuple[str, ...]:
        name = self._parameters.get(id(tensor))
        return (name,) if name is not None else tuple(self._constants.get(tensor, ()))

    def _op(self, name: str, func: Any, args: Any, kwargs: Any, sources: list[_Read], outputs: list[Tensor]) -> Op:
        roles = roles_of(name, func, args)
        data = [(place, source) for place, _, is_data, source in sources if is_data]
        parameters, computed = self._weights(name, roles, sources)
        plain = {roles.get(place, str(place)): value for place, value in enumerate(args) if not tensors_in(value)}
        plain |= {key: value for key, value in kwargs.items() if not tensors_in(value)}
        return Op(
            index=len(self.ops),
            name=name,
            kind=kind_of(name, len(data), bool(parameters or computed)),
            module=self._stack[-1],
            inputs=tuple(source for _, source in data),
            parameters=parameters,
            computed=computed,
            function=func,
            arguments=plain,
            shape=tuple(outputs[0].shape),
            outputs=len(outputs),
            _call=replay(func, args, kwargs, [place for place, _ in data]),
        )

    def _weights(self, name: str, roles: dict[Any, str], sources: list[_Read]) -> tuple[Any, Any]:
        """Roles and names of the parameters an op reads, and of those its other constant tensors come from."""
        parameters: list[tuple[str, str]] = []
        computed: list[tuple[str, tuple[str, ...]]] = []
        for place, tensor, is_data, _ in sources:
            role, below = roles.get(place, str(place)), self._names_below(tensor)
            if id(tensor) in self._parameters:
                # the many weights of a recurrent layer come as one list: their own names tell them apart
                own = below[0].rsplit(".", 1)[-1] if kind_of(name, 1, True) == "recurrent" else role
                parameters.append((own, below[0]))
            elif not is_data and below:
                computed.append((role, below))
        return tuple(parameters), tuple(computed)
