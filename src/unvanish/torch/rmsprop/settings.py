"""What an RMSprop may be told, what of it is possible, and the numbers under which it is another library's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # keras.optimizers.RMSprop 3.x; optax.rmsprop 0.2.x names no learning rate of its own
        "keras": {},
        "optax": {"eps": 1e-8},
        # torch.optim.RMSprop 2.x: eps outside of the root, learning rate outside of the buffer, L2 in the gradient
        "torch": {
            "lr": 1e-2,
            "rho": 0.99,
            "eps": 1e-8,
            "eps_inside": False,
            "lr_in_momentum": False,
            "decoupled_weight_decay": False,
        },
        # timm.optim.RMSpropTF 1.x, the RMSprop of TensorFlow 1: v starts at 1
        "timm": {"lr": 1e-2, "eps": 1e-10, "initial_accumulator": 1.0, "decoupled_weight_decay": False},
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one parameter group, in range; the fields are the arguments of ``RMSprop``."""

    lr: float | Tensor
    rho: float
    eps: float
    eps_inside: bool
    momentum: float
    lr_in_momentum: bool
    nesterov: bool
    centered: bool
    initial_accumulator: float
    bias_correction: bool
    weight_decay: float
    decoupled_weight_decay: bool
    clip: float | None
    maximize: bool
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool

    @classmethod
    def of(cls, group: Mapping[str, Any], *, may_wait: bool = False) -> Settings:
        """Of a parameter group as it is now: groups may be edited between steps.

        Args:
            group: of the optimizer.
            may_wait: whether the program may wait for a device to read the learning rate there.

        Raises:
            ValueError: a value is out of its range, or two exclude each other.
        """
        values = _values(group)
        if _NUMBERS.issuperset(map(type, values)):  # a tensor may have another number in it by now
            return _checked_before(*values)
        return cls._checked(*values, may_wait=may_wait)

    @classmethod
    def _checked(cls, *values: Any, may_wait: bool = False) -> Settings:
        settings = cls(*values)
        settings._check_switches()
        settings._check_ranges(may_wait=may_wait)
        settings._check_pairs()
        return settings

    @property
    def learning_rate(self) -> float | Tensor:
        """A plain number where nobody needs the tensor: it spares a kernel launch, and Numba takes no tensors."""
        lr = self.lr
        if isinstance(lr, Tensor) and lr.device.type == "cpu" and not (self.capturable or self.differentiable):
            return float(lr)
        return lr

    def _check_ranges(self, *, may_wait: bool) -> None:
        if isinstance(self.lr, Tensor) and self.lr.numel() != 1:
            raise refusal("lr", self.lr, "one number", "give a float, or a tensor with one element")
        if _readable(self.lr, may_wait=may_wait):
            _require("lr", self.lr, 0, math.inf, "learning rates are usually 1e-4 to 1e-2; maximize=True goes uphill")
        _require("rho", self.rho, 0, 1, "0.9 averages over 10 steps, 0.99 over 100")
        _require("momentum", self.momentum, 0, 1, "0 is none; 0.9 is usual")
        _require("weight_decay", self.weight_decay, 0, math.inf, "0 is none")
        _require("initial_accumulator", self.initial_accumulator, 0, math.inf, "0, or 1 as in TensorFlow 1")
        _require("eps", self.eps, 0, math.inf, "1e-7 is usual: at 0 an entry without gradient is 0/0", open_below=True)
        if self.clip is not None:
            _require("clip", self.clip, 0, math.inf, "a global norm such as 1.0, or None for none", open_below=True)

    def _check_switches(self) -> None:
        for name in _SWITCHES:
            value = getattr(self, name)
            if value is not True and value is not False and not (value is None and name in _OPEN):
                either = "True, False or None" if name in _OPEN else "True or False"
                raise refusal(name, value, either, "give one of them, or leave it out")

    def _check_pairs(self) -> None:
        if self.nesterov and not self.momentum:
            raise refusal("nesterov", True, "momentum > 0 with it", "give momentum=0.9, or nesterov=False")
        if self.fused and self.foreach:
            raise refusal("fused and foreach", True, "at most one of the two", "leave out foreach: fused is faster")
        if self.differentiable and (self.fused or self.capturable):
            raise refusal(
                "differentiable",
                True,
                "no fused and no capturable step with it: autograd sees neither",
                "leave out fused and capturable",
            )


_values = itemgetter(*(field.name for field in fields(Settings)))
_NUMBERS = frozenset({float, int, bool, type(None)})
_checked_before = lru_cache(maxsize=256, typed=True)(Settings._checked)  # typed: 1 is no True here
_SWITCHES = tuple(field.name for field in fields(Settings) if str(field.type).startswith("bool"))
_OPEN = ("foreach", "fused")  # None: as is best


def _require(name: str, value: object, low: float, high: float, hint: str, *, open_below: bool = False) -> None:
    number = number_in(value)
    if (low < number if open_below else low <= number) and number < high:
        return
    bracket = "(" if open_below else "["
    raise refusal(name, value, f"a number in {bracket}{low:g}, {high:g})", hint)


def _readable(value: object, *, may_wait: bool) -> bool:
    """Whether the number can be read: a tensor may have none, be traced, or be on a device that all would wait for."""
    if not isinstance(value, Tensor):
        return True
    plain = isinstance(value, torch.nn.Parameter) or type(value) is Tensor
    return plain and not value.is_meta and (value.is_cpu or may_wait) and not torch.compiler.is_compiling()


def number_in(value: object) -> float:
    """Also of a NumPy scalar or a tensor of one element; NaN, which fails every comparison, for what is no number."""
    if isinstance(value, str):
        return math.nan
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def refusal(name: str, value: object, expected: str, mend: str) -> ValueError:
    """The error for a setting out of its range."""
    shown = repr(value)
    if isinstance(value, Tensor) and value.numel() != 1:
        shown = f"a tensor of {value.numel()} numbers"
    return ValueError(f"RMSprop was given {name}={shown}. Expected {expected}. To mend it: {mend}.")


def widened(dtype: torch.dtype) -> torch.dtype:
    """Type of the running averages: (1 - rho) g^2 is 0 in float16 below g = 1e-3, and bfloat16 cannot add it up."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
