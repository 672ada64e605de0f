"""Small programs as users write them that were once judged wrongly: what each must be told, and what stays silent."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unvanish import diagnose
from unvanish.diagnosis import Diagnosis
from unvanish.types import Finding

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def digits(count: int = 640) -> Batches:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels[:count], dtype=torch.float32) / 16, torch.tensor(labels[:count])
    return list(zip(x.split(64), y.split(64), strict=True))


def diabetes(size: int = 49) -> Batches:
    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return list(zip(x[:441].split(size), y[:441].split(size), strict=True))


def mlp(inputs: int = 64, outputs: int = 10, *last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, outputs), *last)


def adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def root(diagnosis: Diagnosis) -> Finding:
    assert diagnosis.findings, str(diagnosis)
    return diagnosis.findings[0]


def by_item(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return torch.tensor(F.cross_entropy(model(batch[0]), batch[1]).item(), requires_grad=True)


def by_argmax(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]).argmax(1).float(), batch[1].float()).requires_grad_()


def by_argmax_of_one(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return by_argmax(model, batch).detach().reshape(1).requires_grad_()


@pytest.mark.parametrize("objective", [by_item, by_argmax, by_argmax_of_one])
def test_a_loss_told_to_require_a_gradient_is_connected_with_nothing(objective: Callable[..., Tensor]) -> None:
    model = mlp()
    finding = root(diagnose(model, batches=digits(), optimizer=adam(model), objective=objective, steps=5))
    assert (finding.cause, finding.where) == ("disconnected", ("loss",))


class Checkpointed(nn.Module):
    """Residual blocks behind reentrant checkpoints, whose graph nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=True)
        return self.last(x)


def test_a_reentrant_checkpoint_is_no_cut() -> None:
    model = Checkpointed()
    diagnosis = diagnose(model, F.cross_entropy, digits(), adam(model))
    assert diagnosis.healthy, str(diagnosis)


def test_an_exploding_recurrent_net_is_told_and_does_not_break_us() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(8, 32, nonlinearity="relu", batch_first=True)
            self.head = nn.Linear(32, 10)
            nn.init.normal_(self.rnn.weight_hh_l0, std=8.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.reshape(-1, 1, 8).expand(-1, 60, 8))[0][:, -1])

    model = Net()
    batches = [(x[:8], y[:1].expand(64)) for x, y in digits()]
    assert root(diagnose(model, F.cross_entropy, batches, adam(model), steps=5)).cause in ("exploding", "non-finite")


class ZeroBranches(nn.Module):
    """Residual branches that start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(3))
        for block in self.blocks:
            nn.init.zeros_(block[2].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_branches_that_start_at_zero_are_no_symmetry(steps: int) -> None:
    model = ZeroBranches()
    diagnosis = diagnose(model, F.cross_entropy, digits(), adam(model), steps=steps)
    assert diagnosis.healthy, str(diagnosis)


def test_a_missing_value_in_the_data_comes_before_a_head_of_zeros() -> None:
    model = mlp()
    nn.init.zeros_(model[2].weight)
    batches = digits()
    batches[0][0][3, 7] = math.nan
    finding = root(diagnose(model, F.cross_entropy, batches, adam(model)))
    assert (finding.cause, finding.where) == ("non-finite", ("input",))


def test_a_standard_deviation_of_one_sample_is_where_the_nan_is_born() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(((h - h.mean(0)) / (h.std(0) + 1e-5)).relu())

    model = Net()
    single = [(x[:1], y[:1]) for x, y in digits()]
    with pytest.warns(UserWarning, match="degrees of freedom"):
        finding = root(diagnose(model, F.cross_entropy, single, adam(model)))
    assert finding.cause == "non-finite"


def one_hot(batches: Batches) -> Batches:
    return [(x, F.one_hot(y, 10).float()) for x, y in batches]


def with_a_second_term(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    output = model(batch[0])
    return F.cross_entropy(output, batch[1]) + 0.1 * F.mse_loss(output.sum(1), torch.ones(len(output)))


@pytest.mark.parametrize("last", ["softmax", "none"])
def test_softmax_twice_also_with_probabilities_as_targets_and_beside_another_term(last: str) -> None:
    sick = last == "softmax"
    model = mlp(64, 10, *([nn.Softmax(dim=1)] if sick else []))
    soft = diagnose(model, F.cross_entropy, one_hot(digits()), adam(model, 3e-3))
    two = diagnose(model, batches=digits(), optimizer=adam(model, 3e-3), objective=with_a_second_term)
    for diagnosis in (soft, two):
        found = [finding.cause for finding in diagnosis.findings]
        assert found == (["loss-mismatch"] if sick else []), str(diagnosis)


def test_the_floor_of_soft_targets_is_the_entropy_of_their_mean() -> None:
    model, batches = mlp(), one_hot(digits())
    mean = batches[0][1].double().mean(0)
    expected = -float(torch.xlogy(mean, mean).sum())
    floor = diagnose(model, F.cross_entropy, batches, adam(model), steps=0).flow.loss.floor
    assert floor == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_softmax_over_the_samples(dim: int) -> None:
    model = mlp(64, 10, nn.LogSoftmax(dim=dim))
    diagnosis = diagnose(model, F.nll_loss, digits(), adam(model, 3e-3))
    assert [finding.cause for finding in diagnosis.findings] == (["loss-mismatch"] if dim == 0 else [])


@pytest.mark.parametrize("signs", [True, False])
def test_binary_cross_entropy_of_targets_that_are_no_probabilities(signs: bool) -> None:
    model = mlp(10, 1)
    batches = [(x, (y[:, None] > 0).float() * (2 if signs else 1) - int(signs)) for x, y in diabetes()]
    found = [f.cause for f in diagnose(model, F.binary_cross_entropy_with_logits, batches, adam(model, 3e-3)).findings]
    assert found == (["loss-mismatch"] if signs else [])


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("column", ["target", "output", "both"])
def test_a_broadcast_in_either_direction(column: str) -> None:
    model = mlp(10, 1) if column != "target" else nn.Sequential(*mlp(10, 1), nn.Flatten(0))
    batches = [(x, y if column == "output" else y[:, None]) for x, y in diabetes()]
    diagnosis = diagnose(model, F.mse_loss, batches, adam(model, 1e-2))
    assert [finding.cause for finding in diagnosis.findings] == ([] if column == "both" else ["loss-mismatch"])


def test_a_converged_regression_is_left_in_peace() -> None:
    model, batches = mlp(10, 1), [(x, y[:, None]) for x, y in diabetes()]
    trained = adam(model, 1e-2)
    for _ in range(150):
        for x, y in batches:
            trained.zero_grad()
            F.mse_loss(model(x), y).backward()
            trained.step()
    diagnosis = diagnose(model, F.mse_loss, batches, torch.optim.SGD(model.parameters(), lr=1e-4))
    assert diagnosis.healthy, str(diagnosis)


def test_a_rate_far_too_high_is_not_blamed_on_the_time_steps() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(8, 48, batch_first=True), nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.gru(x.reshape(-1, 8, 8).repeat(1, 4, 1))[0][:, -1])

    model = Net()
    assert root(diagnose(model, F.cross_entropy, digits(), adam(model, 1.0))).cause == "learning-rate-high"


class Pooled(nn.Module):
    """Features normalised per sample, then averaged."""

    def __init__(self, activation: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 16, 3), nn.InstanceNorm2d(16), nn.Linear(16, 10)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x.view(-1, 1, 8, 8)))
        return self.head((h.relu() if self.activation else h).mean((2, 3)))


@pytest.mark.parametrize("activation", [True, False])
def test_an_average_of_what_was_normalised_to_mean_zero(activation: bool) -> None:
    model = Pooled(activation)
    diagnosis = diagnose(model, F.cross_entropy, digits(), adam(model, 1e-2))
    assert [finding.cause for finding in diagnosis.findings] == ([] if activation else ["normalization"])


class Rounded(torch.autograd.Function):
    """Rounds; straight through backward, or not at all."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, through: bool) -> Tensor:
        ctx.through = through  # type: ignore[attr-defined]
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> tuple[Tensor, None]:
        return (g if ctx.through else torch.zeros_like(g)), None  # type: ignore[attr-defined]


@pytest.mark.parametrize("through", [True, False])
def test_a_function_of_the_users_whose_backward_gives_nothing(through: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Rounded.apply(self.a(x), through).tanh())

    model = Net()
    diagnosis = diagnose(model, F.cross_entropy, digits(), adam(model, 3e-3))
    found = [(finding.cause, finding.where) for finding in diagnosis.findings]
    assert found == ([] if through else [("disconnected", ("a:rounded",))])


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_a_schedule_that_starts_at_zero_is_no_rate_of_zero() -> None:
    model = mlp()
    optimizer = adam(model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
    assert optimizer.param_groups[0]["lr"] == 0
    diagnosis = diagnose(model, F.cross_entropy, digits(), optimizer)
    assert diagnosis.healthy, str(diagnosis)
    assert any("schedule" in gap for gap in diagnosis.flow.unobserved)
    assert optimizer.param_groups[0]["lr"] == 0
    never = torch.optim.Adam(model.parameters(), lr=0.0)
    assert root(diagnose(model, F.cross_entropy, digits(), never)).cause == "learning-rate-low"


def test_batches_of_another_shape_are_named() -> None:
    model = mlp()
    (x, y), *_ = digits()
    with pytest.raises(RuntimeError) as caught:
        diagnose(model, F.cross_entropy, [(x, y), (x[:, :50], y)], adam(model))
    assert "(64, 50), (64,)" in caught.value.__notes__[0]
    assert "(64, 64), (64,)" in caught.value.__notes__[0]


class Handmade(nn.Module):
    """A middle layer that the optimizer cannot know, in the ways people write one."""

    def __init__(self, habit: str) -> None:
        super().__init__()
        self.habit, self.first, self.last = habit, nn.Linear(64, 64), nn.Linear(64, 10)
        self.kept = nn.Parameter(torch.randn(64, 64) / 8).double().float()  # as .to(device) makes one
        self.store = {"middle": [nn.Parameter(torch.randn(64, 64) / 8) * 1.0]}

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        if self.habit == "built in forward":
            return self.last(nn.Linear(64, 64)(hidden).relu())  # type: ignore[no-any-return]
        middle = self.kept if self.habit == "kept" else self.store["middle"][0]
        return self.last((hidden @ middle).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("habit", "where"),
    [
        ("built in forward", ("made in forward [64, 64]", "made in forward [64]")),
        ("kept", ("kept",)),
        ("in a dict", ("store['middle'][0]",)),
    ],
)
def test_weights_that_no_optimizer_can_know(habit: str, where: tuple[str, ...]) -> None:
    model = Handmade(habit)
    assert not model.kept.is_leaf
    found = root(diagnose(model, F.cross_entropy, digits(), adam(model)))
    assert (found.cause, found.where) == ("disconnected", where)


class Remembering(nn.Module):
    """Goes on from the last state, as stateful LSTMs do, and keeps what it put out with its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.last = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        out, self.state = self.rnn(
            x.view(-1, 8, 8), None if self.state is None else tuple(map(Tensor.detach, self.state))
        )
        return self.last(out[:, -1])  # type: ignore[no-any-return]


def test_kept_results_of_an_earlier_pass_are_no_weights() -> None:
    model = Remembering()
    model.tree = {"children": []}  # type: ignore[assignment]
    model.tree["children"].append({"parent": model.tree})  # type: ignore[index, operator]
    model(digits()[0][0])
    assert model.state is not None
    assert model.state[0].grad_fn is not None
    assert diagnose(model, F.cross_entropy, digits(), adam(model, 3e-3)).healthy


def test_another_networks_weights_in_the_loss_are_its_own_affair() -> None:
    judge, model = nn.Linear(10, 1), mlp()

    def fools(fake: Tensor, _: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(judge(fake), torch.ones(len(fake), 1))

    assert diagnose(model, fools, digits(), adam(model)).healthy


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean"])
@pytest.mark.parametrize("fed", [torch.softmax, torch.log_softmax])
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_kl_div_takes_log_probabilities(fed: Callable[[Tensor, int], Tensor], reduction: str) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        target = 0.9 * F.one_hot(labels, 10) + 0.01  # smoothed labels
        return F.kl_div(fed(logits, -1), target, reduction=reduction)

    model = mlp()
    diagnosis = diagnose(model, loss, digits(), adam(model, 3e-3))
    found = [(finding.cause, finding.where[0]) for finding in diagnosis.findings]
    assert found == ([] if fed is torch.log_softmax else [("loss-mismatch", "loss")])


def test_a_weighted_sum_of_probabilities_is_no_divergence() -> None:
    def expected_error(logits: Tensor, labels: Tensor) -> Tensor:
        return (1 - (logits.softmax(-1) * F.one_hot(labels, 10)).sum(-1)).mean()

    model = mlp()
    assert diagnose(model, expected_error, digits(), adam(model, 3e-3)).healthy


RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda h: h.clamp(min=0),
    "clamp to six": lambda h: h.clamp(0, 6),
    "mask": lambda h: h * (h > 0),
    "where": lambda h: torch.where(h > 0, h, 0.0),
    "maximum": lambda h: torch.maximum(h, torch.zeros(())),
    "masked_fill": lambda h: h.masked_fill(h <= 0, 0.0),
}


@pytest.mark.parametrize("bias", [0.0, -20.0])
@pytest.mark.parametrize("name", RECTIFIERS)
def test_rectifiers_written_by_hand_die_too(name: str, bias: float) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
            nn.init.constant_(self.b.bias, bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(RECTIFIERS[name](self.b(RECTIFIERS[name](self.a(x)))))  # type: ignore[no-any-return]

    model = Net()
    found = diagnose(model, F.cross_entropy, digits(), adam(model)).findings
    assert [(finding.cause, finding.where[0]) for finding in found] == ([("dead-units", "b")] if bias else [])


class Gated(nn.Module):
    """Squeeze and excitation: a gate for each channel, which may be shut from the start, with or without a skip."""

    def __init__(self, bias: float, *, skip: bool) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(1, 32, 3, padding=1), nn.Linear(32, 32), nn.Linear(32, 10)
        self.skip = skip
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x.view(-1, 1, 8, 8)).relu()
        gated = hidden * self.gate(hidden.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.head((gated + hidden if self.skip else gated).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("bias", "skip", "ill"), [(0.0, False, False), (-14.0, True, False), (-14.0, False, True)])
def test_a_gate_that_is_shut_matters_where_nothing_goes_around(bias: float, skip: bool, ill: bool) -> None:
    model = Gated(bias, skip=skip)
    found = diagnose(model, F.cross_entropy, digits(), adam(model, 1e-2)).findings
    assert [(finding.cause, finding.where[0]) for finding in found] == ([("saturation", "gate")] if ill else [])


def test_the_relu_of_a_hinge_is_no_last_activation() -> None:
    batches = [(x, (2.0 * (y > 4) - 1).unsqueeze(1)) for x, y in digits()]

    def hinge(output: Tensor, sign: Tensor) -> Tensor:
        return (1 - output * sign).relu().mean()

    model = mlp(64, 1)
    assert diagnose(model, hinge, batches, adam(model, 3e-3)).healthy


def test_matrices_in_a_list_have_a_name_each() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shapes = [(64, 64)] * 6 + [(64, 10)]
            self.ws = nn.ParameterList(nn.Parameter(0.01 * torch.randn(shape)) for shape in shapes)

        def forward(self, x: Tensor) -> Tensor:
            for weight in self.ws[:-1]:
                x = (x @ weight).tanh()
            return x @ self.ws[-1]

    model = Raw()
    found = root(diagnose(model, F.cross_entropy, digits(), torch.optim.SGD(model.parameters(), lr=0.1)))
    assert found.cause == "initialization"
    assert set(found.where) >= {f"ws.{k}" for k in range(1, 6)}


def test_an_eps_of_ten_is_named_and_not_the_rate() -> None:
    model = mlp()
    found = root(diagnose(model, F.cross_entropy, digits(), torch.optim.Adam(model.parameters(), lr=1e-3, eps=10.0)))
    assert found.cause == "learning-rate-low"
    assert found.remedies[0].startswith("set eps back to 1e-8")


def test_adadelta_is_told_its_own_rate() -> None:
    model = mlp()
    found = root(diagnose(model, F.cross_entropy, digits(), torch.optim.Adadelta(model.parameters(), lr=1e-3)))
    assert found.cause == "learning-rate-low"
    assert found.remedies[0] == "set the learning rate to 1"


def test_rectifiers_that_a_huge_step_kills_are_the_rates_fault() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 24, 5, padding=2)
            self.f1, self.f2 = nn.Linear(24 * 4, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.c1(x.view(-1, 1, 8, 8)).relu(), 2)
            x = F.max_pool2d(self.c2(x).relu(), 2)
            return self.f2(self.f1(x.flatten(1)).relu())  # type: ignore[no-any-return]

    model = Net()
    found = root(diagnose(model, F.cross_entropy, digits(), torch.optim.SGD(model.parameters(), lr=1.5, momentum=0.9)))
    assert found.cause == "learning-rate-high"


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
def test_an_optimizer_of_another_model_is_a_finding_and_no_error(kind: type[torch.optim.Optimizer]) -> None:
    model, earlier = mlp(), mlp()
    before = [p.detach().clone() for p in earlier.parameters()]
    found = diagnose(model, F.cross_entropy, digits(), kind(earlier.parameters(), lr=0.1)).findings
    assert [(finding.cause, finding.where) for finding in found] == [("disconnected", ("optimizer",))]
    assert all(map(torch.equal, before, earlier.parameters()))


class Quantized(nn.Module):
    """Weights on a grid, as a parametrization."""

    def __init__(self, straight_through: bool) -> None:
        super().__init__()
        self.straight_through = straight_through

    def forward(self, w: Tensor) -> Tensor:
        step = w.detach().abs().max() / 7
        q = torch.round(w / step) * step
        return w + (q - w).detach() if self.straight_through else q


@pytest.mark.parametrize("straight_through", [False, True])
def test_weights_made_by_a_flat_op(straight_through: bool) -> None:
    model = mlp()
    for layer in (model[0], model[2]):
        nn.utils.parametrize.register_parametrization(layer, "weight", Quantized(straight_through))
    diagnosis = diagnose(model, F.cross_entropy, digits(), adam(model, 3e-3))
    if straight_through:
        assert diagnosis.healthy
        return
    assert (root(diagnosis).cause, root(diagnosis).where) == ("disconnected", ("0", "2"))


class LowRank(nn.Module):
    def __init__(self, base: nn.Linear, *, drawn: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.zeros(4, base.in_features)), nn.Parameter(torch.zeros(base.out_features, 4))
        if drawn:
            nn.init.kaiming_uniform_(self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 4 * (x @ self.a.t() @ self.b.t())


@pytest.mark.parametrize("drawn", [False, True])
def test_both_factors_of_an_adapter_are_zero(drawn: bool) -> None:
    model = nn.Sequential(LowRank(nn.Linear(64, 64), drawn=drawn), nn.ReLU(), LowRank(nn.Linear(64, 10), drawn=drawn))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    diagnosis = diagnose(model, F.cross_entropy, digits(), optimizer)
    if drawn:
        assert diagnosis.healthy
        return
    assert (root(diagnosis).cause, root(diagnosis).where) == ("symmetry", ("0", "2"))


@pytest.mark.parametrize("copied", [True, False])
def test_experts_made_by_deepcopy(copied: bool) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first = nn.Linear(10, 1)
            self.experts = nn.ModuleList(copy.deepcopy(first) if copied else nn.Linear(10, 1) for _ in range(4))
            self.router = nn.Linear(10, 4)
            nn.init.zeros_(self.router.weight)
            nn.init.zeros_(self.router.bias)

        def forward(self, x: Tensor) -> Tensor:
            shares = self.router(x).softmax(-1)
            return (shares * torch.cat([expert(x) for expert in self.experts], -1)).sum(-1)

    x = torch.randn(8, 64, 10)
    model, batches = Experts(), [(one, one[:, 0].abs()) for one in x]
    diagnosis = diagnose(model, F.mse_loss, batches, adam(model, 3e-2))
    if not copied:
        assert "symmetry" not in {finding.cause for finding in diagnosis.findings}
        return
    assert root(diagnosis).cause == "symmetry"
    assert set(root(diagnosis).where) >= {"experts.0", "experts.3"}


@pytest.mark.parametrize("axis", [-1, 1])
def test_softmax_over_an_axis_of_one(axis: int) -> None:
    class Chooser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))
            self.choose = nn.Softmax(dim=axis)

        def forward(self, x: Tensor) -> Tensor:
            return self.choose(self.score(x)).squeeze(-1)

    x = torch.randn(8, 32, 6, 5)
    batches = [(one, F.one_hot(one[..., 0].argmax(1), 6).float()) for one in x]
    model = Chooser()
    diagnosis = diagnose(model, lambda p, t: (p - t).square().sum(1).mean(), batches, adam(model, 1e-2))
    if axis == 1:
        assert diagnosis.healthy
        return
    assert (root(diagnosis).cause, root(diagnosis).where) == ("loss-mismatch", ("loss", "choose"))


@pytest.mark.parametrize("raw", [True, False])
def test_raw_targets_of_a_quantile_loss_by_hand(raw: bool) -> None:
    shares = torch.tensor([0.1, 0.5, 0.9])

    def pinball(q: Tensor, y: Tensor) -> Tensor:
        e = y[:, None] - q
        return torch.maximum(shares * e, (shares - 1) * e).mean()

    batches = [(x, 2e5 + 8e4 * y if raw else y) for x, y in diabetes()]
    model = mlp(10, 3)
    diagnosis = diagnose(model, pinball, batches, adam(model, 3e-3))
    if not raw:
        assert diagnosis.healthy
        return
    assert root(diagnosis).cause == "input-scale"


@pytest.mark.parametrize("logarithm", [False, True])
def test_chrono_biases_without_their_logarithm(logarithm: bool) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)
            scale = torch.empty(32).uniform_(1, 100)
            scale = scale.log() if logarithm else scale
            with torch.no_grad():
                self.rnn.bias_hh_l0.zero_()
                self.rnn.bias_ih_l0.zero_()
                self.rnn.bias_ih_l0[:32], self.rnn.bias_ih_l0[32:64] = -scale, scale

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x.view(-1, 8, 8))[0][:, -1])

    model = Reader()
    diagnosis = diagnose(model, F.cross_entropy, digits(), adam(model, 5e-3))
    if logarithm:
        assert "saturation" not in {finding.cause for finding in diagnosis.findings}
        return
    assert (root(diagnosis).cause, root(diagnosis).where) == ("saturation", ("rnn",))
