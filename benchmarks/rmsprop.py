"""What an RMSprop step costs: ratio to moving the same bytes, and to torch.optim, Keras and optax.

    python benchmarks/rmsprop.py             # everything, a few minutes
    python benchmarks/rmsprop.py --quick     # two shapes, no Keras and no optax
    python benchmarks/rmsprop.py --threads 2

All variants of a shape take turns in one process on the same parameters and gradients; the best of the rounds counts.
*floor*: a Numba loop that reads parameter, gradient and average and writes parameter and average, 20 bytes a
parameter, with one addition each; *clip floor*: the same after reading the gradient once more, 24 bytes. Both on one
array of all parameters, which NumPy puts into huge pages; *in place*: on the memory of the tensors as PyTorch gives it.

With one thread its own time counts, not that of others on the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import time
from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from unvanish.torch import loops
from unvanish.torch.loops.numba_tools import array
from unvanish.torch.rmsprop import RMSprop

Step = Callable[[], object]
LR = 1e-9  # the parameters stay what they are


def resnet50() -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    wide = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, wide, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, (shape[0],), (shape[0],)]
            if block == 0:
                shapes += [(4 * width, wide, 1, 1), (4 * width,), (4 * width,)]
            wide = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2_small() -> list[tuple[int, ...]]:
    block = [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,), (768,), (768,)]
    block += [(3072, 768), (3072,), (768, 3072), (768,)]
    return [(50257, 768), (1024, 768), *block * 12, (768,), (768,)]


SHAPES: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "one tensor, 20M": lambda: [(20_000_000,)],
    "1,000 of 10,000": lambda: [(10_000,)] * 1000,
    "100 of 10,000 (in cache)": lambda: [(10_000,)] * 100,
    "ResNet-50": resnet50,
    "GPT-2 small": gpt2_small,
}
QUICK = ("1,000 of 10,000", "ResNet-50")


@numba.njit(nogil=True)
def _move(p, g, v):
    for i in range(len(p)):
        v[i] += g[i]
        p[i] -= g[i]


@numba.njit(nogil=True, fastmath=True)
def _read(g):
    total = np.float32(0)
    for i in range(len(g)):
        total += g[i]
    return total


@numba.njit(nogil=True)
def _move_all(table, ends, like):
    for k in range(len(ends) - 1):
        size = ends[k + 1] - ends[k]
        _move(array(table[0, k], size, like), array(table[1, k], size, like), array(table[2, k], size, like))


@numba.njit(nogil=True)
def _read_all(table, ends, like):
    total = np.float32(0)
    for k in range(len(ends) - 1):
        total += _read(array(table[1, k], ends[k + 1] - ends[k], like))
    return total


def floors_in_place(parameters: list[Tensor]) -> tuple[Step, Step]:
    """The same on tensors like these."""
    copies = [[torch.zeros_like(p) for p in parameters] for _ in range(3)]
    table = np.stack([loops.addresses(column) for column in copies])
    given = table, loops.offsets(parameters), np.zeros(0, dtype=np.float32)
    return lambda _keep=copies: _move_all(*given), lambda _keep=copies: (_read_all(*given), _move_all(*given))


def floors(parameters: list[Tensor]) -> tuple[Step, Step]:
    """One array of all parameters: no cost per tensor at all."""
    total = sum(p.numel() for p in parameters)
    p, g, v = (np.zeros(total, dtype=np.float32) for _ in range(3))
    return lambda: _move(p, g, v), lambda: (_read(g), _move(p, g, v))


def clipped(parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> Step:
    def step() -> None:
        clip_grad_norm_(parameters, 1e9)  # it multiplies all gradients whether they are too long or not
        optimizer.step()

    return step


def variants(parameters: list[Tensor]) -> dict[str, Step]:
    floor, clip_floor = floors(parameters)
    in_place, clip_in_place = floors_in_place(parameters)
    loop = torch.optim.RMSprop(parameters, lr=LR, foreach=False)
    return {
        "floor, 20 bytes": floor,
        "floor in place": in_place,
        "ours": RMSprop(parameters, lr=LR).step,
        "ours without Numba": RMSprop(parameters, lr=LR, foreach=True).step,
        "torch, loop": loop.step,
        "torch, foreach": torch.optim.RMSprop(parameters, lr=LR, foreach=True).step,
        "Adagrad, fused": torch.optim.Adagrad(parameters, lr=LR, fused=True).step,
        "clip floor, 24 bytes": clip_floor,
        "clip floor in place": clip_in_place,
        "ours, clip": RMSprop(parameters, lr=LR, clip=1e-3).step,
        "ours without Numba, clip": RMSprop(parameters, lr=LR, clip=1e-3, foreach=True).step,
        "torch, clip + loop": clipped(parameters, loop),
        "ours, momentum (28 bytes)": RMSprop(parameters, lr=LR, momentum=0.9).step,
        "ours, centred (28 bytes)": RMSprop(parameters, lr=LR, centered=True).step,
    }


def optax_step(parameters: list[Tensor]) -> Step | None:
    if importlib.util.find_spec("optax") is None:
        return None
    import jax
    import optax

    optimizer = optax.rmsprop(LR)
    values, gradients = (
        [jax.numpy.asarray(np.asarray(t.detach())) for t in ts] for ts in (parameters, grads(parameters))
    )
    state = optimizer.init(values)

    def update(values, state, gradients):
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(values, updates), state

    jitted = jax.jit(update, donate_argnums=(0, 1))
    held = [values, state]

    def step() -> None:
        held[:] = jitted(*held, gradients)
        jax.block_until_ready(held)

    return step


def keras_step(parameters: list[Tensor]) -> Step | None:
    if importlib.util.find_spec("keras") is None:
        return None
    import os

    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    variables = [keras.Variable(p.detach().numpy().copy()) for p in parameters]
    optimizer, gradients = keras.optimizers.RMSprop(LR), grads(parameters)
    return lambda: optimizer.apply(gradients, variables)


def grads(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def now() -> float:
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def measure(steps: dict[str, Step], rounds: int, now: Callable[[], float] = now) -> dict[str, float]:
    best = dict.fromkeys(steps, float("inf"))
    for turn in range(rounds + 1):  # the first warms up: state, compilation
        for name, step in steps.items():
            start = now()
            step()
            if turn:
                best[name] = min(best[name], now() - start)
    return best


def table(name: str, best: dict[str, float]) -> None:
    floor, clip_floor, foreach = (best[key] for key in ("floor, 20 bytes", "clip floor, 24 bytes", "torch, foreach"))
    print(f"\n{name}\n{'':28}{'ms':>9}{'x floor':>9}{'torch foreach / this':>22}")
    for variant, seconds in best.items():
        of = clip_floor if "clip" in variant else floor
        print(f"{variant:28}{1e3 * seconds:9.2f}{seconds / of:9.2f}{foreach / seconds:22.2f}")


def small_operations() -> float:
    """Seconds of many small operations of torch in its own threads."""
    tensors = [torch.ones(50_000) for _ in range(50)]
    best = float("inf")
    for _ in range(20):
        start = now()
        for tensor in tensors:
            tensor.mul_(1.0)
        best = min(best, now() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{platform.processor() or platform.machine()}, {given.threads} thread(s), torch {torch.__version__}")
    before = small_operations()
    for name in QUICK if given.quick else SHAPES:
        parameters = [torch.randn(shape) for shape in SHAPES[name]()]
        for p in parameters:
            p.grad = torch.randn(p.shape)
        table(name, measure(variants(parameters), given.rounds))
        if given.quick or name == "GPT-2 small":
            continue  # the other libraries copy all of it
        for library, make in (("optax, jit", optax_step), ("Keras on torch", keras_step)):
            step = make(parameters)
            if step is not None:
                peers = {"floor, 20 bytes": floors(parameters)[0], library: step}
                best = measure(peers, given.rounds, time.perf_counter)  # they have threads of their own
                print(f"{library:28}{1e3 * best[library]:9.2f}{best[library] / best['floor, 20 bytes']:9.2f}")
    print(f"\nsmall operations of torch, after / before our steps: {small_operations() / before:.2f}")


if __name__ == "__main__":
    main()
