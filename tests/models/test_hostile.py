"""The public function in the hands of someone who reads no documentation, and of programs odd but legal."""

from __future__ import annotations

import copy
import random
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

import unvanish
from unvanish import Diagnosis

CE = F.cross_entropy
Pair = namedtuple("Pair", "x y")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def data(count: int = 6, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(1)
    teacher = torch.randn(8, 3, generator=source)
    inputs = [torch.randn(size, 8, generator=source) for _ in range(count)]
    return [(x, (x @ teacher).argmax(1)) for x in inputs]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)


def state(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Any]:
    tensors = [t for name, t in sorted(model.state_dict().items())] + [p.grad for p in model.parameters()]
    streams = [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64)), random.getstate()]
    held = [] if optimizer is None else [optimizer.state_dict()]
    hooks = [len(h) for m in model.modules() for name, h in sorted(vars(m).items()) if name.endswith("_hooks")]
    return copy.deepcopy([tensors, streams, held, hooks, [m.training for m in model.modules()]])


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and (one.is_meta or torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def diagnose(model: Any, loss_fn: Any = None, batches: Any = None, optimizer: Any = None, **more: Any) -> Diagnosis:
    """The public call, which must leave every bit of the user's as it was, whether it succeeds or not."""
    module = model if isinstance(model, nn.Module) and not lazy(model) else nn.Identity()
    given = optimizer if isinstance(optimizer, torch.optim.Optimizer) and not lazy(model) else None
    before = state(module, given)
    kept = copy.deepcopy(batches) if isinstance(batches, list) else None
    try:
        return unvanish.diagnose(model, loss_fn, batches, optimizer, **{"steps": 12, **more})
    finally:
        assert equal(before, state(module, given))
        assert kept is None or equal(kept, batches)


def lazy(model: Any) -> bool:
    return any(isinstance(p, nn.UninitializedParameter) for p in model.parameters())


# What cannot be diagnosed: one error in three parts, nothing changed.


def holding(attribute: Any) -> nn.Module:
    model = net()
    model.extra = attribute
    return model


REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "a function as model": ("as model", lambda: diagnose(lambda x: x, CE, data())),
    "a class as model": ("as model", lambda: diagnose(nn.Linear, CE, data())),
    "no batches": ("without batches", lambda: diagnose(net(), CE)),
    "an empty list": ("is empty", lambda: diagnose(net(), CE, [])),
    "a used generator": ("is empty", lambda: diagnose(net(), CE, iter([]))),
    "a batch without samples": (
        "Batch 1 holds no samples",
        lambda: diagnose(net(), CE, [data()[0], (torch.zeros(0, 8), torch.zeros(0))]),
    ),
    "rules by id": ("is no rule", lambda: diagnose(net(), CE, data(), rules=["depth"])),
    "a list of nothing": ("a list of 0", lambda: diagnose(net(), CE, data(), [])),
    "a number of batches": ("is a int", lambda: diagnose(net(), CE, 5)),
    "a dataset": ("TensorDataset", lambda: diagnose(net(), CE, TensorDataset(torch.randn(4, 8), torch.zeros(4)))),
    "one tensor": ("A batch is a Tensor", lambda: diagnose(net(), CE, torch.randn(4, 8))),
    "one pair": ("A batch is a Tensor", lambda: diagnose(net(), CE, data()[0])),
    "dicts with loss_fn": ("A batch is a dict", lambda: diagnose(net(), CE, [{"x": x, "y": y} for x, y in data()])),
    "no loss at all": ("without a loss", lambda: diagnose(net(), None, [x for x, _ in data()])),
    "a loss class": ("the class CrossEntropyLoss", lambda: diagnose(net(), nn.CrossEntropyLoss, data())),
    "a loss name": ("is a str", lambda: diagnose(net(), "mse", data())),
    "two losses": (
        "Both loss_fn and objective",
        lambda: diagnose(net(), CE, data(), objective=lambda m, b: m(b[0]).sum()),
    ),
    "a float loss": ("is a float", lambda: diagnose(net(), lambda o, t: CE(o, t).item(), data())),
    "no returned loss": ("is a NoneType", lambda: diagnose(net(), lambda o, t: None, data())),
    "a vector loss": ("has shape (16,)", lambda: diagnose(net(), nn.CrossEntropyLoss(reduction="none"), data())),
    "a complex loss": ("is complex", lambda: diagnose(net(), lambda o, t: CE(o, t) * (1 + 0j), data())),
    "an optimizer class": ("the class Adam", lambda: diagnose(net(), CE, data(), torch.optim.Adam)),
    "a scheduler": (
        "is a StepLR",
        lambda: diagnose(net(), CE, data(), torch.optim.lr_scheduler.StepLR(adam(net()), 1)),
    ),
    "a model on meta": ("meta device", lambda: diagnose(net().to("meta"), CE, data())),
    "TorchScript": ("TorchScript", lambda: diagnose(torch.jit.trace(net(), torch.randn(2, 8)), CE, data())),
    "a lock inside": ("could not copy", lambda: diagnose(holding(threading.Lock()), CE, data())),
    "a generator inside": ("could not copy", lambda: diagnose(holding(i for i in range(3)), CE, data())),
    "negative steps": ("steps is -1", lambda: diagnose(net(), CE, data(), steps=-1)),
    "half a step": ("steps is 2.5", lambda: diagnose(net(), CE, data(), steps=2.5)),
}


@pytest.mark.filterwarnings("ignore:batches is a one-shot:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_in_three_parts(name: str) -> None:
    words, call = REFUSED[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is the point
        call()
    message = str(caught.value)
    assert words in message
    assert message.rstrip(".").count(". ") >= 2, message


@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.parametrize("where", ["forward", "loss"])
def test_the_users_own_error_stays_and_says_whose_it_is(where: str) -> None:
    model = nn.Linear(9, 3) if where == "forward" else net()
    with pytest.raises(RuntimeError) as caught:
        diagnose(model, CE if where == "forward" else nn.MSELoss(), data())
    assert "comes from your program" in caught.value.__notes__[0]


def test_an_error_late_in_the_rehearsal() -> None:
    model, calls = net(), [0]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > 7:
            raise KeyError("late")
        return CE(output, target)

    with pytest.raises(KeyError, match="late"):
        diagnose(model, loss, data(), adam(model))
    assert calls == [0]  # the copy of the loss counted on its own list


def test_interrupted() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose(net(), loss, data())


# What is odd but fine.


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.net(x) if scale is None else self.net(x) * scale


ONE = torch.ones(1)
FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "namedtuple": Pair,
    "tuple input": lambda x, y: ((x, ONE), y),
    "list input": lambda x, y: ([x, ONE], y),
    "dict input": lambda x, y: ({"x": x, "scale": ONE}, y),
    "triple": lambda x, y: (x, ONE, y),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_forms_of_a_batch(form: str) -> None:
    model = TwoInputs()
    assert diagnose(model, CE, [FORMS[form](x, y) for x, y in data()], adam(model)).healthy


def test_dict_batches_with_an_objective() -> None:
    model = net()
    batches = [{"x": x, "y": y, "name": "text"} for x, y in data()]
    assert diagnose(model, None, batches, adam(model), objective=lambda m, b: CE(m(b["x"]), b["y"])).healthy


def test_a_generator_is_used_up_with_a_warning() -> None:
    model = net()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from data()

    with pytest.warns(UserWarning, match="one-shot iterator"):
        assert diagnose(model, CE, batches(), adam(model)).healthy


def test_a_loaders_own_generator_stays() -> None:
    model, source = net(), torch.Generator().manual_seed(3)
    x, y = (torch.cat(part) for part in zip(*data(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=source)
    before = source.get_state()
    assert diagnose(model, CE, loader, adam(model)).healthy
    assert torch.equal(before, source.get_state())


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_few_steps_judge_no_learning(steps: int) -> None:
    model = net()
    diagnosis = diagnose(model, CE, data(), adam(model), steps=steps)
    assert diagnosis.healthy
    assert len(diagnosis.flow.steps) == steps
    assert bool(diagnosis.flow.experiments) == (steps > 0)


def test_no_rules_no_findings() -> None:
    assert diagnose(net(), CE, data(), rules=[], steps=0).healthy


@pytest.mark.parametrize("size", [1, 2, 20_000])
def test_batch_sizes(size: int) -> None:
    model = net()
    assert diagnose(model, CE, data(3 if size > 2 else 16, size), adam(model)).healthy


def test_batches_of_changing_shape() -> None:
    model = net()
    batches = [(x[: 2 + i], y[: 2 + i]) for i, (x, y) in enumerate(data())]
    assert diagnose(model, CE, batches, adam(model)).healthy


def test_one_single_batch() -> None:
    model = net()
    assert diagnose(model, CE, data(1), adam(model)).healthy


@pytest.mark.parametrize("training", [True, False])
def test_modes(training: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)).train(
        training
    )
    assert diagnose(model, CE, data(), adam(model)).healthy


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), net().requires_grad_(False)], ids=["none", "frozen"])
def test_without_a_trainable_parameter(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        diagnose(model, lambda o, t: o.square().mean(), data())


def test_a_loss_that_counts() -> None:
    finding = diagnose(net(), lambda o, t: (o.argmax(1) != t).float().mean(), data()).findings[0]
    assert finding.cause == "disconnected"


OPTIMIZERS = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adamax",
    "LBFGS",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    model = net()
    rate = {"Adadelta": 1.0, "LBFGS": 0.5, "SGD": 0.1}.get(name, 0.03)
    assert diagnose(model, CE, data(), getattr(torch.optim, name)(model.parameters(), lr=rate)).healthy


def test_groups_schedules_and_tensors_as_rates() -> None:
    model = net()
    groups = [{"params": model[0].parameters(), "lr": torch.tensor(1e-2)}, {"params": model[2].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # patches optimizer.step
    assert diagnose(model, CE, data(), optimizer).healthy
    assert scheduler.last_epoch == 0
    assert not optimizer.state


class NormalizedSteps(torch.optim.Optimizer):
    """Knows no learning rate: each weight moves by a share of its own norm."""

    def __init__(self, params, defaults: dict[str, float | None]) -> None:
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad / p.grad.norm().clamp(min=1e-12) * p.norm().clamp(min=0.1), alpha=0.02)


@pytest.mark.parametrize("defaults", [{}, {"lr": None}])
def test_an_optimizer_without_a_learning_rate(defaults: dict[str, float | None]) -> None:
    model = net()
    optimizer = NormalizedSteps(model.parameters(), defaults)
    diagnosis = diagnose(model, CE, data(), optimizer)
    assert diagnosis.healthy
    assert diagnosis.flow.optimizer.learning_rates == ()
    symmetric = net()
    with torch.no_grad():
        for p in symmetric.parameters():
            p.fill_(0.0)
    found = diagnose(symmetric, CE, data(), NormalizedSteps(symmetric.parameters(), defaults)).findings
    assert found[0].cause == "symmetry"


def test_lazy_layers_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3))
    diagnosis = diagnose(model, CE, data(), adam(model))
    assert diagnosis.healthy
    assert {p.shape for p in diagnosis.flow.parameters} == {(16, 8), (16,), (3, 16), (3,)}
    assert lazy(model)


# Programs that refer to more than their arguments.

GLOBAL = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
SEEN: list[float] = []


def through_a_global(_: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    loss = CE(GLOBAL(batch[0]), batch[1])
    SEEN.append(loss.item())
    return loss


def test_an_objective_that_uses_the_global_model_and_writes_a_global_list() -> None:
    assert diagnose(GLOBAL, None, data(), adam(GLOBAL), objective=through_a_global).healthy
    assert SEEN == []


def test_an_objective_that_closes_over_the_model() -> None:
    model = net()
    diagnosis = diagnose(model, None, data(), adam(model), objective=lambda _, b: CE(model(b[0]), b[1]))
    assert diagnosis.healthy
    assert diagnosis.flow.steps[-1].loss < diagnosis.flow.steps[0].loss


class Trainer:
    def __init__(self) -> None:
        self.model, self.log, self.lock = net(), [], threading.Lock()
        self.optimizer = adam(self.model)

    def loss(self, _: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return CE(self.model(batch[0]), batch[1])


def test_a_trainers_method() -> None:
    trainer = Trainer()
    assert diagnose(trainer.model, None, data(), trainer.optimizer, objective=trainer.loss).healthy
    outside = lambda _, b: CE(trainer.model(b[0]), b[1])  # noqa: E731
    assert diagnose(trainer.model, None, data(), trainer.optimizer, objective=outside).healthy


def test_what_no_copy_can_follow_is_refused() -> None:
    model = net()

    class Secret:
        __slots__ = ("inner",)

    secret = Secret()
    secret.inner = model
    with pytest.raises(ValueError, match="original model's weights"):
        diagnose(model, None, data(), adam(model), objective=lambda _, b: CE(secret.inner(b[0]), b[1]))


def test_a_second_network_in_the_closure_is_not_touched() -> None:
    model, judge = net(), nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    before = state(judge, None)
    diagnosis = diagnose(model, None, data(), adam(model), objective=lambda m, b: F.softplus(-judge(m(b[0]))).mean())
    assert diagnosis.healthy
    assert equal(before, state(judge, None))


def test_random_generators_of_the_users_own() -> None:
    model, source, rng = net(), torch.Generator().manual_seed(5), np.random.default_rng(5)
    before = (source.get_state(), rng.bit_generator.state)

    def objective(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        noise = torch.randn(b[0].shape, generator=source) + rng.normal()
        return CE(m(b[0] + 0.05 * noise), b[1])

    assert diagnose(model, None, data(), adam(model), objective=objective).healthy
    assert torch.equal(before[0], source.get_state())
    assert before[1] == rng.bit_generator.state


def test_hooks_of_the_users_own_fire_only_on_copies() -> None:
    model, calls, features = net(), [], {}
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].weight.register_hook(lambda g: calls.append("weight"))
    model[2].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[1].register_forward_hook(lambda module, args, output: features.update(hidden=output))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return CE(output, target) + 0.01 * features["hidden"].square().mean()

    assert diagnose(model, loss, data(), adam(model)).healthy
    assert calls == []
    assert features == {}
    model(torch.randn(2, 8)).sum().backward()
    assert sorted(calls) == ["backward", "forward", "weight"]


def test_a_gradient_hook_is_part_of_the_program() -> None:
    """Half of the weights are held still by a hook, as with frozen embedding rows."""
    model = net()
    mask = torch.zeros(16, 1)
    model[0].weight.register_hook(lambda g: g * mask)
    diagnosis = diagnose(model, CE, data(), adam(model))
    first = next(p for p in diagnosis.flow.parameters if p.name == "0.weight")
    assert first.log_grad == -float("inf")


def test_an_optimizer_step_inside_backward() -> None:
    model = net()
    optimizers = {p: torch.optim.Adam([p], lr=1e-2) for p in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    diagnosis = diagnose(model, CE, data(), torch.optim.SGD(model.parameters(), lr=0.0))
    assert diagnosis.flow.steps[-1].loss < diagnosis.flow.steps[0].loss
    assert not any(optimizer.state for optimizer in optimizers.values())


def test_a_forward_replaced_on_the_instance() -> None:
    model = net()
    plain = model.forward
    model.forward = lambda x: 2 * plain(x)  # type: ignore[method-assign]
    assert diagnose(model, CE, data(), adam(model)).healthy


@pytest.mark.parametrize("how", ["whole input", "one of two inputs", "own weight", "numpy", "argmax"])
def test_a_cut_is_found_wherever_it_is(how: str) -> None:
    model = Cut(how)
    finding = diagnose(model, CE, data(), adam(model)).findings[0]
    assert finding.cause == "disconnected"
    assert ("scale" if how == "own weight" else "encoder") in finding.where


class Cut(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head, self.mix = how, net(), nn.Bilinear(8, 8, 8)
        if how == "own weight":
            self.scale = nn.Parameter(torch.ones(8))
        else:
            self.encoder, self.codes = nn.Linear(8, 8), nn.Embedding(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "own weight":
            return self.head((x * self.scale).detach())
        hidden = self.encoder(x)
        if self.how == "argmax":
            return self.head(self.codes(hidden.argmax(1)))
        if self.how == "numpy":
            return self.head(torch.from_numpy(hidden.detach().numpy() + 1))
        if self.how == "whole input":
            return self.head(hidden.detach())
        other = self.codes(torch.zeros(len(x), dtype=torch.long))
        return self.head(self.mix(other, hidden.detach()))


# Networks that are not a fixed chain of layers.


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp_min(0) ** 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].clamp_min(0) * grad


class Built(nn.Module):
    """``run(self, x)`` as forward, with two linear layers and whatever else was added."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.run, self.a, self.b = run, nn.Linear(8, 16), nn.Linear(16, 3)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def shrunk(self: Any, x: Tensor) -> Tensor:
    h = self.a(x).relu()
    while h.norm(dim=1).mean() > 1:
        h = 0.7 * h
    return self.b(self.deep(h).relu()) if x.mean() > 0 else self.b(h)


def some_layers(self: Any, x: Tensor) -> Tensor:
    h = self.a(x).relu()
    for layer in self.layers:
        if random.random() < 0.5:
            h = h + layer(h).relu()
    return self.b(h)


def remembered(self: Any, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    self.hidden = self.a(x).relu()
    self.history = [self.hidden]
    return self.b(self.hidden)


def changed_in_place(self: Any, x: Tensor) -> Tensor:
    x.mul_(1.5)
    return self.b(F.relu_(self.a(x)))


def spectrum(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=8)).relu())


class HalfUsed(nn.Linear):
    def __init__(self) -> None:
        super().__init__(16, 16)
        self.inner = nn.Linear(16, 16)
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(super().forward(x).relu())


ODD: dict[str, Callable[[], nn.Module]] = {
    "custom function": lambda: Built(lambda self, x: self.b(Square.apply(self.a(x)))),
    "data-dependent": lambda: Built(shrunk, deep=nn.Linear(16, 16)),
    "random depth": lambda: Built(some_layers, layers=nn.ModuleList(nn.Linear(16, 16) for _ in range(4))),
    "remembers": lambda: Built(remembered),
    "changes its input": lambda: Built(changed_in_place),
    "complex": lambda: Built(spectrum, filter=nn.Parameter(torch.randn(5, dtype=torch.cfloat))),
    "spare parameters": lambda: Built(
        lambda self, x: self.b(self.a(x).relu()), mask=nn.Parameter(torch.zeros(8)), empty=nn.Parameter(torch.zeros(0))
    ),
    "quantised constants": lambda: Built(
        lambda self, x: self.b(self.a(x[:, self.order]).relu()),
        order=nn.Parameter(torch.arange(8), requires_grad=False),
    ),
    "one weight of a module unused": lambda: Built(
        lambda self, x: self.b(self.part(self.a(x).relu())), part=HalfUsed()
    ),
    "spare head, first": lambda: Built(
        lambda self, x: (self.head(2 * x), self.b(self.a(x).relu()))[1], head=nn.Linear(8, 2)
    ),
}


@pytest.mark.parametrize("name", list(ODD))
def test_odd_networks(name: str) -> None:
    model = ODD[name]()
    assert diagnose(model, CE, data(), adam(model)).healthy


def test_used_before_and_holding_its_graph() -> None:
    model = Built(remembered)
    hidden = (model(data()[0][0]), model.hidden)[1]
    assert diagnose(model, CE, data(), adam(model)).healthy
    assert model.calls == 1
    assert model.hidden is hidden


def test_one_module_under_two_names_and_twice_in_a_row() -> None:
    model = Built(
        lambda self, x: self.b(self.other(self.again(self.a(x).relu()).relu()).relu()), again=nn.Linear(16, 16)
    )
    model.other = model.again
    assert diagnose(model, CE, data(), adam(model)).healthy


def test_tied_weights() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight = model[0].weight
    diagnosis = diagnose(model, CE, data(), adam(model))
    assert diagnosis.healthy
    assert [p.name for p in diagnosis.flow.parameters].count("0.weight") == 1


def test_packed_sequences() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.out = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 3)

        def forward(self, x: Any) -> Tensor:
            return self.out(self.gru(x)[1][0])

    model = Reader()
    batches = [
        (pack_sequence([x[:5], x[5:8], x[8:9]], enforce_sorted=False), torch.tensor([0, 1, 2])) for x, _ in data()
    ]
    assert unvanish.diagnose(model, CE, batches, adam(model), steps=6).healthy


def test_double_precision() -> None:
    model = net().double()
    assert diagnose(model, CE, [(x.double(), y) for x, y in data()], adam(model)).healthy


def test_channels_last() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    ).to(memory_format=torch.channels_last)
    images = [torch.randn(16, 3, 8, 8).to(memory_format=torch.channels_last) for _ in range(4)]
    batches = [(x, (x[:, 0].mean((1, 2)) > 0).long()) for x in images]
    assert diagnose(model, CE, batches, torch.optim.Adam(model.parameters(), lr=0.05)).healthy


@pytest.mark.parametrize("how", ["leaf", "graph"])
def test_inputs_that_require_gradients(how: str) -> None:
    model, before = net(), nn.Linear(8, 8)
    batches = [(x.requires_grad_() if how == "leaf" else before(x), y) for x, y in data()]
    assert unvanish.diagnose(model, CE, batches, adam(model), steps=6).healthy
    assert before.weight.grad is None
    assert all(x.grad is None for x, _ in batches if x.is_leaf)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_modes_without_gradients(mode: Callable[[], Any]) -> None:
    model, batches = net(), data()
    with mode():
        assert diagnose(model, CE, batches, adam(model)).healthy


def test_a_loss_with_weights_of_its_own() -> None:
    model, head = net(), nn.Linear(3, 3)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-2)
    assert diagnose(model, lambda o, t: CE(head(o), t), data(), optimizer).healthy
    assert head.weight.grad is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    model = net().cuda()
    batches = [(x.cuda(), y.cuda()) for x, y in data()]
    state_before = torch.cuda.get_rng_state()
    assert diagnose(model, CE, batches, adam(model)).healthy
    assert torch.equal(state_before, torch.cuda.get_rng_state())
    with pytest.raises(RuntimeError):
        diagnose(model, CE, data(), adam(model))
