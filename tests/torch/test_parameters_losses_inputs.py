"""What a probe says of parameters, the loss and the inputs, against brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import close, ln
from torch import Tensor, nn
from torch.nn import functional as F

from unvanish.torch.rehearsal.objective import Objective
from unvanish.torch.views.inputs import view_inputs
from unvanish.torch.views.losses import constant_loss
from unvanish.torch.views.observe import Observation, observe
from unvanish.torch.views.parameters import Updates, duplicate_rows
from unvanish.types import Parameter


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def net(out: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, out))


def seen(
    model: nn.Module, loss: Callable[..., Tensor], x: Tensor, y: Tensor, **given: torch.optim.Optimizer
) -> Observation:
    return observe(model, given.get("optimizer"), Objective(loss, None), (x, y))


def parameter(found: Observation, name: str) -> Parameter:
    return next(p for p in found.parameters if p.name == name)


def test_gradient_and_weight_of_every_parameter() -> None:
    model, x, y = net(), torch.randn(8, 4), torch.randint(3, (8,))
    found = seen(model, F.cross_entropy, x, y)
    for name, p in model.named_parameters():
        view = parameter(found, name)
        assert p.grad is not None
        close(view.log_grad, ln(p.grad))
        close(view.log_weight, ln(p))
        assert (view.shape, view.reached, view.used, view.registered) == (tuple(p.shape), True, True, True)
        assert view.duplicate_rows in (None, 0.0)
        assert not view.constant


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, 3), nn.Linear(4, 3)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.hidden = [nn.Linear(4, 4)]

    def forward(self, x: Tensor) -> Tensor:
        return self.used(torch.tanh(self.hidden[0](self.frozen(x))))


def test_frozen_unused_unregistered_and_forgotten_parameters() -> None:
    model, x, y = Odd(), torch.randn(8, 4), torch.randint(3, (8,))
    found = seen(model, F.cross_entropy, x, y, optimizer=torch.optim.SGD([model.used.weight], lr=0.1))
    used, spare, frozen = (parameter(found, f"{name}.weight") for name in ("used", "spare", "frozen"))
    assert (used.in_optimizer, used.reached, used.used) == (True, True, True)
    assert parameter(found, "used.bias").in_optimizer is False
    assert (spare.reached, spare.used, spare.log_grad) == (False, False, None)
    assert (frozen.requires_grad, frozen.log_grad, frozen.used) == (False, None, True)
    stray = [p for p in found.parameters if not p.registered]
    assert sorted(p.shape for p in stray) == [(4,), (4, 4)]
    assert all(p.in_optimizer is False and p.reached for p in stray)


def test_zero_gradient_is_not_no_gradient() -> None:
    model = net()
    with torch.no_grad():
        model[2].weight.zero_()
    found = seen(model, F.cross_entropy, torch.randn(8, 4), torch.randint(3, (8,)))
    assert parameter(found, "0.weight").log_grad == -math.inf
    assert parameter(found, "2.weight").log_weight == -math.inf
    assert parameter(found, "2.weight").constant


@pytest.mark.parametrize("rows", [0, 2, 5])
def test_duplicate_rows(rows: int) -> None:
    weight = torch.randn(10, 7)
    if rows:
        weight[:rows] = weight[0].clone()
    assert duplicate_rows(weight) == pytest.approx(rows / 10)


def test_rows_that_are_permutations_or_negatives_are_not_duplicates() -> None:
    row = torch.randn(6)
    assert duplicate_rows(torch.stack([row, -row, row.flip(0), row + 1e-3])) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_step_really_changed(dtype: torch.dtype) -> None:
    model = nn.Linear(50, 40).to(dtype)
    named = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    updates = Updates.before_step(named)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-3 * p.abs().amax() * torch.randn_like(p))
    for name, (log_update, unchanged) in updates.measure(named).items():
        old, new = before[name].double().numpy(), named[name].detach().double().numpy()
        close(log_update, math.log(np.sqrt(((new - old) ** 2).sum())))
        assert unchanged == pytest.approx((new == old).mean(), abs=1e-6)


def test_share_of_zeros_in_half_precision_gradients() -> None:
    model = nn.Linear(4, 3).half()
    x = torch.randn(8, 4).half()
    x[:, 1] = 0
    found = observe(model, None, Objective(None, lambda m, b: m(b).float().square().mean()), x)
    assert parameter(found, "weight").zero_gradient == pytest.approx(0.25)


# The loss


def minimum(loss: Callable[[Tensor, Tensor], Tensor], start: Tensor, target: Tensor) -> float:
    """Lowest loss of one constant prediction for all samples, found by L-BFGS."""
    constant = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(constant.expand(len(target), *start.shape), target)
        value.backward()
        return value

    solver.step(closure)
    return float(loss(constant.detach().expand(len(target), *start.shape), target))


CLASSES = torch.tensor([0, 0, 0, 1, 2, 2, 3])
REAL = torch.tensor([[0.5, 2.0], [1.5, -1.0], [3.0, 0.0], [-2.0, 1.0], [0.1, 7.0]], dtype=torch.float64)
BITS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "loss", "start", "target"),
    [
        ("cross_entropy", F.cross_entropy, torch.zeros(4, dtype=torch.float64), CLASSES),
        ("mse", F.mse_loss, torch.zeros(2, dtype=torch.float64), REAL),
        ("bce_with_logits", F.binary_cross_entropy_with_logits, torch.zeros(2, dtype=torch.float64), BITS),
        ("smooth_l1", F.smooth_l1_loss, torch.zeros(2, dtype=torch.float64), REAL),
        ("huber", F.huber_loss, torch.zeros(2, dtype=torch.float64), REAL),
    ],
)
def test_constant_floor_is_the_minimum(
    kind: str, loss: Callable[[Tensor, Tensor], Tensor], start: Tensor, target: Tensor
) -> None:
    assert constant_loss(kind, target) == pytest.approx(minimum(loss, start, target), rel=1e-5)


@pytest.mark.parametrize("bend", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["smooth_l1", "huber"])
def test_floor_of_a_bent_loss_by_search_in_its_own_units(kind: str, bend: float) -> None:
    y = REAL.float()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if kind == "smooth_l1":
            return 3 * F.smooth_l1_loss(output, target, beta=bend)
        return 3 * F.huber_loss(output, target, delta=bend)

    grid = torch.linspace(-3, 8, 111)
    best = min(float(loss(torch.tensor([[a, b]]).expand_as(y), y)) for a in grid for b in grid)
    assert seen(net(2), loss, torch.randn(5, 4), y).loss.floor == pytest.approx(best, rel=1e-3)


def test_constant_floor_of_l1_by_search() -> None:
    grid = torch.linspace(-3, 8, 22001, dtype=torch.float64)
    best = [float((REAL[:, k, None] - grid).abs().mean(0).min()) for k in range(2)]
    assert constant_loss("l1", REAL) == pytest.approx(sum(best) / 2, abs=1e-3)


def test_constant_floor_leaves_out_ignored_classes() -> None:
    target = torch.tensor([0, 1, -100, -100, 1, 0])
    assert constant_loss("cross_entropy", target) == pytest.approx(math.log(2))
    assert constant_loss("nll", torch.tensor([3, 3])) is None
    assert constant_loss("mse", torch.ones(4, 1)) is None


FLOORS: list[tuple[str, Callable[..., Tensor], Tensor, str]] = [
    ("cross_entropy", F.cross_entropy, CLASSES, "linear"),
    ("mse", F.mse_loss, torch.randn(7, 4, generator=torch.Generator().manual_seed(1)), "linear"),
    ("l1", F.l1_loss, torch.randn(7, 4, generator=torch.Generator().manual_seed(1)), "linear"),
    ("smooth_l1", F.smooth_l1_loss, torch.randn(7, 4, generator=torch.Generator().manual_seed(1)), "linear"),
    ("huber", F.huber_loss, torch.randn(7, 4, generator=torch.Generator().manual_seed(1)), "linear"),
    ("bce_with_logits", F.binary_cross_entropy_with_logits, torch.ones(7, 4).tril(), "linear"),
]


@pytest.mark.parametrize(("kind", "loss", "target", "feeding"), FLOORS, ids=[kind for kind, *_ in FLOORS])
def test_what_the_loss_is_and_what_feeds_it(
    kind: str, loss: Callable[..., Tensor], target: Tensor, feeding: str
) -> None:
    model, x = net(4), torch.randn(7, 4)
    view = seen(model, loss, x, target).loss
    assert (view.kind, view.feeding, view.terms, view.requires_grad) == (kind, feeding, 1, True)
    assert view.value == pytest.approx(float(loss(model(x), target).detach()))
    assert view.output_shape == (7, 4)
    assert view.target_shape == tuple(target.shape)
    assert view.broadcast is None
    assert view.floor == pytest.approx(constant_loss(kind, target))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["cross_entropy", "mse", "l1", "bce_with_logits"])
def test_floor_in_the_units_of_the_users_reduction(kind: str, reduction: str) -> None:
    loss, target = {k: (f, t) for k, f, t, _ in FLOORS}[kind]
    view = seen(net(4), lambda out, y: loss(out, y, reduction=reduction), torch.randn(7, 4), target).loss
    best = constant_loss(kind, target)
    assert best is not None
    assert view.reduction in (reduction, None if kind == "l1" else reduction)
    assert view.floor == pytest.approx(best * (target.numel() if reduction == "sum" else 1), rel=1e-5)


@pytest.mark.parametrize("kind", ["cross_entropy", "mse", "bce_with_logits"])
def test_floor_of_a_scaled_loss(kind: str) -> None:
    loss, target = {k: (f, t) for k, f, t, _ in FLOORS}[kind]
    view = seen(net(4), lambda out, y: loss(out, y) / 8, torch.randn(7, 4), target).loss
    assert view.floor == pytest.approx((constant_loss(kind, target) or 0) / 8, rel=1e-4)


def test_floor_of_a_sum_with_ignored_classes() -> None:
    target = torch.tensor([0, 1, -100, -100, 1, 0, -100])
    view = seen(net(4), lambda o, y: F.cross_entropy(o, y, reduction="sum"), torch.randn(7, 4), target).loss
    assert view.floor == pytest.approx(4 * math.log(2))


def test_floor_beside_weight_decay_by_hand() -> None:
    model, y = net(4), torch.randn(7, 4)
    decay = 0.01 * sum(float(p.detach().square().sum()) for p in model.parameters())
    view = seen(
        model, lambda o, t: F.mse_loss(o, t) + 0.01 * sum(p.square().sum() for p in model.parameters()),
        torch.randn(7, 4), y,
    ).loss  # fmt: skip
    assert view.floor == pytest.approx((constant_loss("mse", y) or 0) + decay, rel=1e-4)


def test_floor_under_class_weights_is_the_minimum_too() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    start = torch.zeros(4, dtype=torch.float64)
    least = minimum(lambda o, y: F.cross_entropy(o, y, weight), start, CLASSES)
    view = seen(net(4).double(), lambda o, y: F.cross_entropy(o, y, weight), torch.randn(7, 4).double(), CLASSES).loss
    assert view.floor == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.02, 0.1, 0.6])
def test_floor_under_label_smoothing_is_the_minimum_too(smoothing: float) -> None:
    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(o, y, label_smoothing=smoothing)

    least = minimum(loss, torch.zeros(4, dtype=torch.float64), CLASSES)
    view = seen(net(4).double(), loss, torch.randn(7, 4).double(), CLASSES).loss
    assert view.floor == pytest.approx(least, rel=1e-5)


def test_other_terms_have_no_floor_that_is_known() -> None:
    x, y, weight = torch.randn(7, 4), torch.randn(7, 4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert seen(net(4), lambda o, t: F.mse_loss(o, t) + o.abs().mean(), x, y).loss.floor is None
    weighted = seen(net(4), lambda o, t: F.cross_entropy(o, t, weight, label_smoothing=0.1), x, CLASSES)
    assert weighted.loss.floor is None
    assert seen(net(4), lambda o, t: F.cross_entropy(o, t) + o.square().mean(), x, CLASSES).loss.floor is None


def test_view_in_the_place_of_a_permute_is_seen() -> None:
    class Tagger(nn.Module):
        def __init__(self, order: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.out, self.order = nn.Linear(4, 3), order

        def forward(self, x: Tensor) -> Tensor:
            return self.order(self.out(x))

    x, y = torch.randn(6, 5, 4), torch.randint(3, (6, 5))
    orders = {
        "view": lambda h: h.view(6, 3, 5),
        "reshape": lambda h: h.reshape(6, 3, 5),
        "permute": lambda h: h.permute(0, 2, 1),
        "permuted copy": lambda h: h.transpose(1, 2).contiguous(),
    }
    found = {name: seen(Tagger(order), F.cross_entropy, x, y).loss.reordered for name, order in orders.items()}
    mixed = ((6, 5, 3), (6, 3, 5))
    assert found == {"view": mixed, "reshape": mixed, "permute": None, "permuted copy": None}
    folded = seen(Tagger(lambda h: h.flatten(0, 1)), F.cross_entropy, x, y.flatten()).loss
    assert folded.reordered is None


def test_sum_of_terms_has_no_floor_of_one_of_them() -> None:
    view = seen(net(4), lambda o, y: F.mse_loss(o, y) + F.smooth_l1_loss(o, y), torch.randn(7, 4), FLOORS[1][2]).loss
    assert view.terms == 2
    assert view.floor is None


def test_softmax_before_cross_entropy_is_seen() -> None:
    view = seen(net(4), lambda o, y: F.cross_entropy(o.softmax(1), y), torch.randn(7, 4), CLASSES).loss
    assert (view.kind, view.feeding) == ("cross_entropy", "softmax")


@pytest.mark.parametrize(
    ("guard", "op"),
    [
        (lambda o: o.softmax(1).clamp(1e-7, 1 - 1e-7), "softmax"),
        (lambda o: o.softmax(1) + 1e-8, "softmax"),
        (lambda o: (o.sigmoid() + 1e-8).clamp(max=1.0), "sigmoid"),
        (lambda o: o.clamp(0, 1), "clamp"),
        (lambda o: o + 1e-8, "add"),
        (lambda o: o.softmax(1) + o.sigmoid(), "add"),
    ],
)
def test_what_keeps_probabilities_away_from_zero_is_looked_through(guard: Any, op: str) -> None:
    view = seen(net(4), lambda o, y: F.cross_entropy(guard(o), y), torch.randn(7, 4), CLASSES).loss
    assert (view.kind, view.feeding) == ("cross_entropy", op)


@pytest.mark.parametrize(
    ("limit", "limits"),
    [
        (lambda o: o.clamp(-1, 2.5), (-1.0, 2.5)),
        (F.hardtanh, (-1.0, 1.0)),
        (lambda o: F.hardtanh(o, -3, 4), (-3.0, 4.0)),
        (lambda o: torch.clip(o, -2, 2).unsqueeze(0).squeeze(0), (-2.0, 2.0)),
        (lambda o: o.clamp(min=0), None),
        (lambda o: o.clamp(torch.tensor(-1.0), torch.tensor(1.0)), None),
        (torch.tanh, None),
        (lambda o: o, None),
    ],
)
def test_limits_that_the_program_sets(limit: Any, limits: tuple[float, float] | None) -> None:
    view = seen(net(4), lambda o, y: F.cross_entropy(limit(o), y), torch.randn(7, 4), CLASSES).loss
    assert view.limits == limits


def test_sigmoid_before_mse_is_seen_and_its_saturation_counted() -> None:
    model, x = net(4), torch.randn(7, 4)
    with torch.no_grad():
        model[2].weight.mul_(30)
    out = model(x).sigmoid()
    view = seen(model, lambda o, y: F.mse_loss(o.sigmoid(), y), x, torch.rand(7, 4)).loss
    assert (view.kind, view.feeding) == ("mse", "sigmoid")
    assert view.output_saturated == pytest.approx(float(((out < 0.02) | (out > 0.98)).float().mean()), abs=1e-6)


@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.parametrize("by_hand", [True, False])
def test_silent_broadcast(by_hand: bool) -> None:
    x, y = torch.randn(7, 4), torch.randn(7)
    loss = (lambda o, t: (o - t).square().mean()) if by_hand else F.mse_loss
    assert seen(net(1), loss, x, y).loss.broadcast == ((7, 1), (7,))
    assert seen(net(1), loss, x, y[:, None]).loss.broadcast is None


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_a_hinge_by_hand_is_known_by_its_value(low: float) -> None:
    def hinge(o: Tensor, y: Tensor) -> Tensor:
        return torch.clamp(1 - y * o, min=0).mean()

    target = torch.where(torch.rand(11, 2) < 0.4, 1.0, low)
    view = seen(net(2), hinge, torch.randn(11, 4), target).loss
    tried = torch.linspace(-3, 3, 601)[:, None, None]
    least = (1 - target * tried).clamp(min=0).mean(1).amin(0).mean()
    assert view.kind in ("hinge", *["l1"] * (low == -1))  # one number where all scores lie between -1 and 1
    assert (view.reduction, view.target_range) == ("mean", (low, 1.0))
    assert view.floor == pytest.approx(float(least), rel=1e-5)


def test_a_loss_by_hand_with_the_value_of_a_known_one() -> None:
    y = torch.randn(7, 4)
    view = seen(net(4), lambda o, t: ((o - t) ** 2).mean(), torch.randn(7, 4), y).loss
    assert (view.kind, view.feeding) == ("mse", "linear")
    assert view.floor == pytest.approx(constant_loss("mse", y))


def test_a_loss_without_gradient() -> None:
    found = seen(net(), lambda o, y: F.cross_entropy(o.detach(), y), torch.randn(7, 4), CLASSES[:7].clamp(max=2))
    assert not found.loss.requires_grad
    assert found.sites == ()
    assert found.cuts[0].where == "loss"
    assert set(found.cuts[0].behind) == {"0", "2"}


# The inputs


def test_inputs_of_all_kinds() -> None:
    x = torch.randn(20, 3) * torch.tensor([1.0, 100.0, 0.0]) + 5
    ids = torch.randint(9, (20, 4))
    table, words = view_inputs({"table": x, "words": ids}, None)
    array = x.double().numpy()
    std = array.std(axis=0)
    assert (table.name, words.name) == ("input[table]", "input[words]")
    assert words.moments is None
    assert table.feature_spread == pytest.approx(std[:2].max() / std[:2].min(), rel=1e-5)
    assert table.largest_feature_rms == pytest.approx(np.sqrt((array**2).mean(axis=0)).max(), rel=1e-5)
    assert table.moments is not None
    assert table.moments.mean == pytest.approx(array.mean(), rel=1e-5)
    (single,) = view_inputs(x, None)
    assert single.name == "input"


def test_normalisation_in_front_is_seen() -> None:
    x, y = torch.randn(7, 4), torch.randn(7, 2)
    normed = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert seen(normed, F.mse_loss, x, y).inputs[0].normalized_first
    assert not seen(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), F.mse_loss, x, y).inputs[0].normalized_first


# Cuts


class Cutting(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                h = self.b(self.a(x))
        else:
            h = self.b(self.a(x))
        h = {
            "detach": h.detach,
            "data": lambda: h.data,
            "numpy": lambda: torch.tensor(h.detach().numpy()),
            "list": lambda: torch.tensor(h.tolist()),
            "no_grad": lambda: h,
        }[self.how]()
        return self.c(h)


@pytest.mark.parametrize(
    ("how", "op"), [("detach", "detach"), ("data", "detach"), ("numpy", "cut"), ("list", "cut"), ("no_grad", "no_grad")]
)
def test_where_the_graph_ends(how: str, op: str) -> None:
    found = seen(Cutting(how), F.mse_loss, torch.randn(5, 4), torch.randn(5, 2))
    assert [(cut.where, cut.op, cut.behind) for cut in found.cuts] == [("b", op, ("a", "b"))]


def test_a_spare_head_is_not_a_cut() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            self.two(h)
            return self.one(h)

    assert seen(Heads(), F.mse_loss, torch.randn(5, 4), torch.randn(5, 2)).cuts == ()


class Stepwise(nn.Module):
    """A head that is asked at every step of a loop; what it says is put together."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(4, 1), last)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(x[:, step]).squeeze(-1) for step in range(x.shape[1])], dim=1)


def test_what_was_put_together_is_fed_by_what_made_the_parts() -> None:
    x, y = torch.randn(6, 5, 4), torch.randn(6, 5)
    assert seen(Stepwise(nn.Tanh()), F.mse_loss, x, y).loss.feeding == "tanh"
    assert seen(Stepwise(nn.Identity()), F.mse_loss, x, y).loss.feeding == "linear"
    joined = lambda out, target: F.mse_loss(torch.cat([out[:2].tanh(), out[2:].sigmoid()]), target)  # noqa: E731
    assert seen(Stepwise(nn.Identity()), joined, x, y).loss.feeding == "cat"
