"""The step in plain PyTorch: pieces that stay in the processor's cache, tiny tensors side by side in one piece.

An update of a whole tensor at a time writes its temporary to memory and reads it back: that, and the page faults of
a fresh temporary, is most of what ``torch.optim.RMSprop`` costs on a CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from unvanish.torch.rmsprop.formula import Numbers, Values, advance_, guarded_
from unvanish.torch.rmsprop.settings import Settings
from unvanish.torch.rmsprop.slots import Slot

PIECE = 1 << 17  # elements: parameter, gradient, state and a temporary take 2 MiB of the cache
TINY = 1 << 10  # tensors up to here are put side by side: beyond, copying them costs more than the calls saved
_Update = Callable[[Values, Tensor, Settings, Numbers], Tensor]
SKIPPED = "skipped"  # state: how many entries had no part in a step because their gradient was NaN or Inf


def step(slots: list[Slot], s: Settings, lr: float | Tensor, scale: float | Tensor) -> int:
    """Update the parameters and the state of these slots; returns how many entries were skipped on the CPU."""
    skipped = 0
    made: dict[object, Numbers] = {}
    for members in _packs(slots, s):
        first = members[0]
        kind = (first.v.dtype, first.v.device, first.correction)
        numbers = made.get(kind)
        if numbers is None:
            numbers = made[kind] = _numbers(first, s, lr, scale)
        if len(members) > 1:
            skipped += _step_pack(members, s, numbers)
        elif _looks(first, s):
            skipped += _step_pieces(first, s, numbers)
        else:
            skipped += _step_whole(first, s, numbers)
    return skipped


def _looks(slot: Slot, s: Settings) -> bool:
    """Whether the step may look at numbers: nobody waits for a device, and no tape or graph is written."""
    return slot.v.is_cpu and not (s.differentiable or s.capturable)


def _numbers(slot: Slot, s: Settings, lr: float | Tensor, scale: float | Tensor) -> Numbers:
    v = slot.v
    given = Numbers(_near(lr, v.device), _near(scale, v.device), s.rho, s.eps, slot.correction)
    if not _looks(slot, s):
        return given
    # torch wraps a number anew in each call, which costs more than 10,000 multiplications
    rho, eps, wrapped = (torch.as_tensor(number, dtype=v.dtype) for number in (s.rho, s.eps, scale))
    return given._replace(rho=rho, eps=eps, scale=scale if scale == 1 else wrapped)


def _near(number: float | Tensor, device: torch.device) -> float | Tensor:
    return number.to(device) if isinstance(number, Tensor) and number.device != device else number


def _packs(slots: list[Slot], s: Settings) -> Iterator[list[Slot]]:
    """Tiny slots that the same numbers go for, up to a piece together; all others alone."""
    waiting: dict[object, list[Slot]] = {}
    sizes: dict[object, int] = {}
    for slot in slots:
        size = slot.p.numel()
        if s.foreach is False or s.capturable or not slot.flat or size > TINY:
            yield [slot]
            continue
        kind = (slot.p.dtype, slot.g.dtype, slot.v.dtype, slot.p.device, slot.correction)
        if sizes.get(kind, 0) + size > PIECE:
            sizes[kind] = 0
            yield waiting.pop(kind)
        waiting.setdefault(kind, []).append(slot)
        sizes[kind] = sizes.get(kind, 0) + size
    yield from waiting.values()


def _step_whole(slot: Slot, s: Settings, numbers: Numbers) -> int:
    """Without a look at the numbers, which would make the program wait for the device."""
    update: _Update = guarded_
    if s.fused:
        update = _compiled()
        # a number would be compiled in, and a schedule compile it anew at every step
        numbers = numbers._replace(lr=torch.as_tensor(numbers.lr, device=slot.p.device))
    return count(slot, update(slot.values, slot.g, s, numbers))


@functools.cache
def _compiled() -> _Update:
    """One kernel for the whole formula, written for the device by ``torch.compile``."""
    return torch.compile(guarded_, dynamic=True)


def _step_pieces(slot: Slot, s: Settings, numbers: Numbers) -> int:
    size = slot.p.numel()
    if not slot.flat or size <= PIECE:
        bad = _update_(slot.values, slot.g, s, numbers)
        return 0 if bad is None else count(slot, bad)
    skipped = 0
    room = torch.empty(PIECE, dtype=slot.v.dtype)
    p, g, v, m, b = (_pieces(tensor) for tensor in (slot.p, slot.g, slot.v, slot.m, slot.b))
    for i, piece in enumerate(g):
        values = Values(p[i], v[i], m[i] if m else None, b[i] if b else None)
        bad = _update_(values, piece, s, numbers, room if piece.numel() == PIECE else room[: piece.numel()])
        skipped += 0 if bad is None else count(slot, bad)
    return skipped


def _pieces(tensor: Tensor | None) -> tuple[Tensor, ...]:
    return () if tensor is None else tensor.view(-1).split(PIECE)


def _update_(values: Values, g: Tensor, s: Settings, numbers: Numbers, room: Tensor | None = None) -> Tensor | None:
    """The guarded update only where it is needed: one look at a piece in the cache costs less than its masks."""
    g = g if g.dtype is values.v.dtype else g.to(values.v.dtype)
    # finite only if all gradients are finite and their squares too
    if math.isfinite(torch.linalg.vector_norm(g).item()):
        advance_(values, g, s, numbers, room)
        return None
    return guarded_(values, g, s, numbers)


def _step_pack(members: list[Slot], s: Settings, numbers: Numbers) -> int:
    sizes = [slot.p.numel() for slot in members]
    columns = [[slot.g for slot in members]]
    columns += [
        list(column) for column in zip(*(slot.values for slot in members), strict=True) if column[0] is not None
    ]
    g, *joined = (torch.cat([tensor.view(-1) for tensor in column]) for column in columns)
    given = iter(joined)
    values = Values(*(None if tensor is None else next(given) for tensor in members[0].values))  # type: ignore[arg-type]
    bad = _update_(values, g, s, numbers) if g.device.type == "cpu" else guarded_(values, g, s, numbers)
    for column, together in zip(columns[1:], joined, strict=True):
        torch._foreach_copy_([tensor.view(-1) for tensor in column], together.split(sizes))
    return 0 if bad is None else sum(count(slot, part) for slot, part in zip(members, bad.split(sizes), strict=True))


def count(slot: Slot, bad: Tensor) -> int:
    """Add to the state how many entries were skipped; returned too, but on the CPU only: elsewhere all would wait."""
    number: int | Tensor = bad.sum()
    if bad.device.type == "cpu":
        number = int(number)
        if not number:
            return 0
    slot.state[SKIPPED] = slot.state.get(SKIPPED, 0) + number
    return number if isinstance(number, int) else 0
