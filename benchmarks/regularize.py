"""What the regularisers cost and what they do.

    python benchmarks/regularize.py           # cost: ratio to plain forward and backward
    python benchmarks/regularize.py --effect  # accuracy over three seeds with and without, about twenty minutes

Cost: all variants in turn in one process, the minimum over rounds of each.  "As usually written" is Omega by double
differentiation of all of it, the orthogonality terms by automatic differentiation of W^T W - I, SRIP as in its paper.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unvanish.torch.regularize import JacobianRegularizer, OmegaRegularizer, SoftOrthogonality, SpectralIsometry

Objective = Callable[[], Tensor]


class Recurrent(nn.Module):
    """A recurrent layer whose last output is read."""

    def __init__(self, layer: nn.RNNBase, classes: int = 8) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][-1])


def mlp(depth: int, width: int, inputs: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(inputs, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


@dataclass(frozen=True)
class Case:
    name: str
    model: nn.Module
    x: Tensor
    y: Tensor

    def loss(self) -> Tensor:
        return cross_entropy(self.model(self.x), self.y)


def cases() -> list[Case]:
    torch.manual_seed(0)
    sequence, classes = torch.randn(100, 32, 64), torch.randint(8, (32,))
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    convolutions = [m for _ in range(5) for m in (nn.Conv2d(32, 32, 3, padding=1), nn.Tanh())]
    cnn = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Tanh(), *convolutions, nn.Flatten(), nn.Linear(2**15, 10))
    wide, digits = torch.randn(128, 256), torch.randint(10, (128,))
    return [
        Case("tanh MLP 12 x 256, batch 128", mlp(12, 256, 256), wide, digits),
        Case("CNN 6 x 32 channels, 32 x 32, batch 32", cnn, images, labels),
        Case("nn.RNN 64 -> 64, 100 steps, batch 32", Recurrent(nn.RNN(64, 64)), sequence, classes),
        Case("nn.LSTM 64 -> 64, 100 steps, batch 32", Recurrent(nn.LSTM(64, 64)), sequence, classes),
    ]


def ours(case: Case) -> dict[str, Objective]:
    omega, jacobian = OmegaRegularizer(case.model), JacobianRegularizer(case.model)
    soft, srip = SoftOrthogonality(case.model), SpectralIsometry(case.model)

    def with_omega() -> Tensor:
        with omega.watch():
            loss = case.loss()
        return loss + 0.1 * omega.penalty(loss)

    def with_jacobian() -> Tensor:
        with jacobian.watch():
            loss = case.loss()
        return loss + 0.1 * jacobian.penalty()

    return {
        "Omega": with_omega,
        "Jacobian": with_jacobian,
        "soft orthogonality": lambda: case.loss() + 0.1 * soft.penalty(),
        "SRIP": lambda: case.loss() + 0.1 * srip.penalty(),
    }


def usual(case: Case) -> dict[str, Objective]:
    found: dict[str, Objective] = {
        "soft orthogonality": lambda: case.loss() + 0.1 * sum(r.square().sum() for r in residuals(case.model)),
        "SRIP": lambda: case.loss() + 0.1 * sum(map(restricted_isometry, residuals(case.model))),
    }
    if isinstance(case.model, nn.Sequential):
        found["Jacobian"] = lambda: usual_jacobian(case)
        found["Omega"] = lambda: usual_omega(case)
    return found


def residuals(model: nn.Module) -> list[Tensor]:
    weights = [m.weight.flatten(1) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for layer in model.modules():
        if isinstance(layer, nn.RNNBase):
            weights += layer.weight_hh_l0.split(layer.hidden_size)
    tall = [w if w.shape[0] >= w.shape[1] else w.t() for w in weights]
    return [w.t() @ w - torch.eye(w.shape[1]) for w in tall]


def restricted_isometry(residual: Tensor) -> Tensor:
    """Two steps of a power iteration from a random vector, differentiated (Bansal 2018, section 3.4)."""
    first = residual @ torch.randn(residual.shape[0])
    return (residual @ first).norm() / first.norm()


def usual_jacobian(case: Case) -> Tensor:
    x = case.x.clone().requires_grad_()
    output = case.model(x)
    direction = nn.functional.normalize(torch.randn_like(output))
    (gradient,) = torch.autograd.grad(output, x, direction, create_graph=True)
    return cross_entropy(output, case.y) + 0.1 * gradient.square().sum() * output.shape[1] / len(x)


def usual_omega(case: Case) -> Tensor:
    """Ratios of the gradients at neighbouring layers, differentiated through everything."""
    sums, h = [], case.x
    for module in case.model:
        h = module(h)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            sums.append(h)
    loss = cross_entropy(h, case.y)
    norms = [g.flatten(1).norm(dim=1) for g in torch.autograd.grad(loss, sums, create_graph=True)]
    ratios = [a / b.clamp_min(1e-30) for a, b in pairwise(norms)]
    return loss + 0.1 * sum((ratio - 1).square().mean() for ratio in ratios)


def seconds(case: Case, objective: Objective) -> float:
    case.model.zero_grad()
    start = time.process_time()
    objective().backward()
    return time.process_time() - start


def cost(rounds: int) -> None:
    print("| net | plain | Omega | Jacobian | soft orthogonality | SRIP |\n|---|---|---|---|---|---|")
    for case in cases():
        runs: dict[str, Objective] = {"plain": case.loss}
        runs |= ours(case) | {f"usual {name}": run for name, run in usual(case).items()}
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(rounds):
            for name, objective in runs.items():
                best[name] = min(best[name], seconds(case, objective))
        ratio = {name: f"{value / best['plain']:.2f}" for name, value in best.items()}
        cells = [f"{ratio[n]} (usual {ratio.get(f'usual {n}', '-')})" for n in ours(case)]
        print(f"| {case.name} | {best['plain'] * 1e3:.2f} ms | {' | '.join(cells)} |", flush=True)


Batch = tuple[Tensor, Tensor]


def memory(steps: int, samples: int, generator: torch.Generator) -> Batch:
    """One of eight classes shown at the first step, then noise: say at the end which."""
    y = torch.randint(8, (samples,), generator=generator)
    x = torch.zeros(steps, samples, 9)
    x[0, torch.arange(samples), y] = 1.0
    x[1:, :, 8] = 0.5 * torch.randn(steps - 1, samples, generator=generator)
    return x, y


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return ((x - x.mean(0)) / (x.std(0) + 1e-3))[order], torch.tensor(data.target)[order]


@dataclass(frozen=True)
class Experiment:
    name: str
    make: Callable[[], nn.Module]
    draw: Callable[[torch.Generator], Batch]
    test: Batch
    lr: float
    steps: int

    def accuracy(self, seed: int, method: str, strength: float) -> float:
        torch.manual_seed(seed)
        model = self.make()
        optimizer = torch.optim.RMSprop(model.parameters(), lr=self.lr)
        generator = torch.Generator().manual_seed(seed)
        term = penalty(model, method)
        for _ in range(self.steps):
            x, y = self.draw(generator)
            optimizer.zero_grad()
            term(lambda x=x, y=y: cross_entropy(model(x), y), strength).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            return float((model(self.test[0]).argmax(1) == self.test[1]).float().mean())


def penalty(model: nn.Module, method: str) -> Callable[[Objective, float], Tensor]:
    """A function from the loss and the strength to their sum."""
    if method == "Omega":
        omega = OmegaRegularizer(model)

        def with_omega(objective: Objective, strength: float) -> Tensor:
            with omega.watch():
                loss = objective()
            return loss + strength * omega.penalty(loss)

        return with_omega
    if method == "none":
        return lambda objective, _: objective()
    term = {"SRIP": SpectralIsometry, "soft": SoftOrthogonality}[method](model)
    return lambda objective, strength: objective() + strength * term.penalty()


def orthogonal(model: Recurrent) -> Recurrent:
    nn.init.orthogonal_(model.layer.weight_hh_l0)
    return model


def experiments() -> list[Experiment]:
    x, y = digits()
    generator = torch.Generator().manual_seed(99)

    def some(g: torch.Generator) -> Batch:
        chosen = torch.randint(1437, (64,), generator=g)
        return x[chosen], y[chosen]

    held_out = x[1437:], y[1437:]
    found = []
    for steps, lr in ((30, 1e-3), (30, 5e-3), (100, 1e-3)):
        test = memory(steps, 512, generator)
        for start, change in (("default", lambda m: m), ("orthogonal", orthogonal)):
            found.append(
                Experiment(
                    f"RNN remembers over {steps} steps, {start} weights, lr {lr:g}",
                    lambda change=change: change(Recurrent(nn.RNN(9, 32))),
                    lambda g, steps=steps: memory(steps, 32, g),
                    test,
                    lr,
                    300,
                )
            )
    for name, activation in (("tanh", nn.Tanh), ("ReLU", nn.ReLU), ("sigmoid", nn.Sigmoid)):
        for depth in (10, 20, 40):
            title = f"{name} MLP of {depth} layers, default weights, lr 0.001"
            found.append(Experiment(title, lambda d=depth, a=activation: mlp(d, 64, 64, a), some, held_out, 1e-3, 200))
    return found


def effect(names: list[str]) -> None:
    warnings.simplefilter("ignore")  # that a signal is dead shows in the accuracy
    settings = [("none", 0.0), ("Omega", 0.1), ("Omega", 1.0), ("soft", 0.01), ("SRIP", 0.1)]
    print("| test accuracy, seeds 0 1 2 | " + " | ".join(f"{m} {s:g}" if s else m for m, s in settings) + " |")
    print("|---" * (len(settings) + 1) + "|")
    for experiment in (e for e in experiments() if all(name in e.name for name in names)):
        cells = [
            " ".join(f"{experiment.accuracy(seed, method, strength):.2f}" for seed in range(3))
            for method, strength in settings
        ]
        print(f"| {experiment.name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--effect", action="store_true")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("names", nargs="*", help="with --effect: only experiments whose title has all of these")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, one thread")
    if args.effect:
        effect(args.names)
    else:
        cost(args.rounds)


if __name__ == "__main__":
    main()
