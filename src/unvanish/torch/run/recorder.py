"""Listen to a program: its calls of PyTorch, from its first network on, until it has made a loss of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from unvanish.torch.probe.scopes import read_elsewhere, tensors_in, wrapped
from unvanish.torch.run.tape import Called, Slot, Tape, mapped, slots_in

_MOST_CALLS = 20_000
_MOST_BYTES = 1 << 26  # of data: every play makes a copy
_ORDINARY = (Tensor, nn.Parameter)
_DRAWS = {
    "normal",
    "bernoulli",
    "multinomial",
    "poisson",
    "binomial",
    "_standard_gamma",
    "_sample_dirichlet",
    "bernoulli_",
}
_TO_PYTHON = {"item", "tolist", "numpy", "__array__", "__int__", "__index__", "__float__", "__bool__"}


class Recorder(TorchFunctionMode):
    """Hears every call of PyTorch in this thread from ``begin`` until a loss is asked for, and again from the next."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = False  # while our own code is at work
        self._on = False
        self._lost = False  # something happened that cannot be played again
        self._calls: list[Called] = []
        self._met: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._leaves: dict[int, Tensor] = {}
        self._data: dict[int, Tensor] = {}
        self._bytes = self._count = 0
        self._random: dict[int, Tensor] = {}
        self._made: set[int] = set()  # slots of what the program's weights went into
        self._drawn: set[int] = set()  # and of those that were drawn by it, or made of such draws without a gradient

    def begin(self) -> None:
        """Listen from here on. Other modes that are on already may end before us, and take us for themselves."""
        if self._on or self._lost:
            return
        stack = _get_current_function_mode_stack()
        if self not in stack:
            if stack:
                return
            _push_mode(self)
        self._on = True
        self._random[len(self._calls)] = torch.get_rng_state()

    def close(self) -> None:
        """Take it off the stack of modes, wherever it lies there by now."""
        self._on = False
        above = []
        while self in (stack := _get_current_function_mode_stack()):
            above.append(_pop_mode())
            if stack[-1] is self:
                above.pop()
        for mode in reversed(above):
            _push_mode(mode)

    def tape(self, loss: Tensor) -> Tape | None:
        """What was heard up to now, if it led to this loss and can be played."""
        self._on = False
        index = self._known(loss)
        if self._lost or index is None or index in self._leaves or index in self._data:
            return None
        return Tape(tuple(self._calls), dict(self._leaves), dict(self._data), index, dict(self._random))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, and note it down."""
        kwargs = kwargs or {}
        if func is torch.autograd.grad:  # our own stands in its place, and has heard of it
            func = getattr(func, "__wrapped__", func)
        if self.aside or not self._on or read_elsewhere():
            return func(*args, **kwargs)
        shown = self._guarded(lambda: mapped((args, kwargs), self._shown))  # before an op in place changes them
        result = func(*args, **kwargs)
        self._guarded(lambda: self._note(func, shown, result))
        return result

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Whatever goes wrong with us must not stop the user's program."""
        try:
            return work() if self._on else None
        except Exception:
            self._lost, self._on = True, False
            return None

    def _note(self, func: Any, shown: Any, result: Any) -> None:
        """A call that was made."""
        returned, given = tuple(tensors_in(result)), set(slots_in(shown))
        made = not self._made.isdisjoint(given)
        drawn = (made and func.__name__ in _DRAWS) or not self._drawn.isdisjoint(given)
        self._lost |= drawn and func.__name__ in _TO_PYTHON  # a move in a game: another draw would have another answer
        if returned or (result is None and given):
            slots = tuple(self._number(tensor) for tensor in returned)
            self._made.update(slots if made else ())
            made_of = zip(slots, returned, strict=True) if drawn else ()
            self._drawn.update(slot for slot, tensor in made_of if not tensor.requires_grad)
            self._calls.append(Called(func, shown[0], shown[1], slots, torch.is_grad_enabled(), _autocast()))
            self._lost |= len(self._calls) > _MOST_CALLS
        self._on = not self._lost

    def _shown(self, part: Any) -> Any:
        """An argument as it is noted down; a tensor that comes from outside is taken in."""
        if not isinstance(part, Tensor):
            return part
        if wrapped(part):  # inside vmap or grad
            self._lost = True
            return part
        known = self._known(part)
        if known is not None:
            return Slot(known)
        number = self._number(part)
        if part.requires_grad:
            self._lost |= not part.is_leaf  # what it was made of was not heard
            self._leaves[number] = part
            self._made.add(number)
        else:
            self._bytes += part.numel() * part.element_size()
            self._lost |= self._bytes > _MOST_BYTES or part.layout is not torch.strided
            self._data[number] = part if self._lost else part.clone()
        self._lost |= type(part) not in _ORDINARY
        return Slot(number)

    def _known(self, tensor: Tensor) -> int | None:
        """Its slot, if it was met; another that has come to lie at the same place was not."""
        reference, number = self._met.get(id(tensor), (None, -1))
        return number if reference is not None and reference() is tensor else None

    def _number(self, tensor: Tensor) -> int:
        """Its slot; a new one for a tensor that was not met."""
        known = self._known(tensor)
        if known is None:
            known, self._count = self._count, self._count + 1
            self._met[id(tensor)] = weakref.ref(tensor), known
        return known


def _autocast() -> tuple[str, torch.dtype] | None:
    devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    return (devices[-1], torch.get_autocast_dtype(devices[-1])) if devices else None
