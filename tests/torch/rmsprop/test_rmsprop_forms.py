"""Parameters and gradients of every form: order in memory, precision, complex, sparse; learning rates as tensors."""

from __future__ import annotations

import pytest
import torch

from unvanish.torch.rmsprop import RMSprop

STEPS = 4


def follow(make, shapes_of, gradients, **settings):
    """Parameters after the steps of one optimizer."""
    parameters = [shape() for shape in shapes_of]
    optimizer = make(parameters, **settings)
    for t in range(STEPS):
        for p, g in zip(parameters, gradients(t), strict=True):
            p.grad = g
        optimizer.step()
    return parameters


def image(shape=(2, 3, 4, 5)):
    return torch.linspace(-1, 1, 120, dtype=torch.float64).reshape(shape)


ORDERS = {
    "channels last": lambda: image().to(memory_format=torch.channels_last),
    "transposed": lambda: image().transpose(1, 3),
    "every second": lambda: torch.stack([image(), image()], dim=-1)[..., 0],
    "part of a larger one": lambda: torch.nn.functional.pad(image(), (1, 1))[..., 1:-1],
    "scalar": lambda: torch.tensor(0.5, dtype=torch.float64),
    "empty": lambda: torch.zeros(0, 3, dtype=torch.float64),
}


IGNORED = pytest.mark.filterwarnings("ignore:RMSprop. fused=True has no effect")  # on parts of a tensor


@IGNORED
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("gradient_order", ["like the parameter", "contiguous", "expanded"])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True}])
def test_orders_in_memory(way, order, gradient_order, settings):
    def gradients(t):
        like = ORDERS[order]()
        if gradient_order == "expanded":
            return [torch.tensor(0.5 + t, dtype=torch.float64).expand(like.shape)]
        values = torch.cos(torch.arange(like.numel(), dtype=torch.float64) + t).reshape(like.shape)
        return [values if gradient_order == "contiguous" else torch.empty_like(like).copy_(values)]

    (ours,) = follow(lambda p, **s: RMSprop.like("torch", p, **s, **way), [ORDERS[order]], gradients, **settings)
    (theirs,) = follow(torch.optim.RMSprop, [lambda: ORDERS[order]().contiguous()], gradients, **settings)
    torch.testing.assert_close(ours.contiguous(), theirs, rtol=0, atol=1e-13)


@IGNORED
def test_what_lies_between_the_elements_is_not_touched(way):
    base = torch.zeros(6, 6, dtype=torch.float64)
    part = base[1:5, 1:5]
    optimizer = RMSprop([part], **way)
    part.grad = torch.ones(4, 4, dtype=torch.float64)
    optimizer.step()
    assert int((base != 0).sum()) == 16
    assert (part != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True}])
def test_half_precision_computes_in_float32(way, dtype, settings):
    """Each step is that of float32 on the rounded parameter: in float16 torch's is -inf at once for g <= 1e-3."""
    if "fused" in way:
        way = {}
    start = torch.linspace(-1, 1, 9).to(dtype)
    w, wide = start.clone(), start.float()
    ours, theirs = RMSprop([w], **settings, **way), RMSprop([wide], foreach=False, **settings)
    for g in (1e-3, 1e-4, 2.0, 6e4):
        w.grad = torch.full((9,), g).to(dtype)
        wide.grad = w.grad.float()
        ours.step()
        theirs.step()
        torch.testing.assert_close(w, wide.to(dtype), rtol=0, atol=0)
        wide.copy_(w)
    assert ours.state[w]["square_avg"].dtype == torch.float32
    assert w.isfinite().all()


def test_torch_breaks_in_float16():
    """The case is real."""
    w = torch.ones(1, dtype=torch.float16)
    optimizer = torch.optim.RMSprop([w])
    w.grad = torch.full_like(w, 1e-4)
    optimizer.step()
    assert not w.isfinite().all()


def test_mixed_types_in_one_group(way):
    types = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
    parameters = [torch.ones(3, dtype=dtype) for dtype in types]
    optimizer = RMSprop(parameters, lr=0.1, clip=100.0, **{**way, "fused": None})
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p in parameters:
        expected = torch.full((3,), 1 - 0.1 / 0.1**0.5, dtype=torch.float64)
        torch.testing.assert_close(p.real.double(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "maximize": True}])
def test_complex_numbers_are_pairs_of_real_ones(way, settings):
    def gradients(t):
        return [torch.view_as_complex(torch.cos(torch.arange(8, dtype=torch.float64) + t).reshape(4, 2))]

    start = [lambda: torch.linspace(0, 1, 4).to(torch.complex128)]
    (ours,) = follow(lambda p, **s: RMSprop.like("torch", p, **s, **way), start, gradients, **settings)
    (theirs,) = follow(torch.optim.RMSprop, start, gradients, **settings)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip": 0.1},
        {"maximize": True, "bias_correction": True},
        {"momentum": 0.9},
        {"centered": True},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": False},
    ],
)
def test_a_sparse_gradient_is_the_dense_one_it_stands_for(way, settings):
    """Rows may come twice, and rows without gradient still forget their average."""

    def sparse(t):
        indices = torch.tensor([[0, 2, 0]]) if t % 2 else torch.tensor([[4, 1, 2]])
        values = torch.arange(6, dtype=torch.float64).reshape(3, 2) - 2.5 + t
        return [torch.sparse_coo_tensor(indices, values, (5, 2), check_invariants=True)]

    start = [lambda: torch.ones(5, 2, dtype=torch.float64)]

    def make(p, **s):
        return RMSprop(p, lr=0.1, **s, **{name: on for name, on in way.items() if (name, on) != ("foreach", True)})

    (ours,) = follow(make, start, sparse, **settings)
    (dense,) = follow(make, start, lambda t: [sparse(t)[0].to_dense()], **settings)
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-15)


def test_sparse_gradients_of_an_embedding():
    torch.manual_seed(0)
    tables = [torch.nn.Embedding(10, 3, sparse=sparse) for sparse in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    for table in tables:
        optimizer = RMSprop(table.parameters(), lr=0.1)
        for t in range(3):
            optimizer.zero_grad()
            table(torch.tensor([1, 1, 4 + t])).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(tables[0].weight, tables[1].weight)


def test_a_bad_entry_in_a_sparse_gradient():
    w = torch.ones(3, 2)
    optimizer = RMSprop([w])
    w.grad = torch.sparse_coo_tensor(
        torch.tensor([[1]]), torch.tensor([[float("nan"), 1.0]]), (3, 2), check_invariants=True
    )
    with pytest.warns(UserWarning, match="NaN or Inf"):
        optimizer.step()
    assert w.isfinite().all()
    assert w[1, 0] == 1
    assert w[1, 1] != 1
    assert optimizer.state[w]["skipped"] == 1


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"lr_in_momentum": False}])
def test_a_tensor_as_learning_rate(way, settings):
    def gradients(t):
        return [torch.arange(5, dtype=torch.float64) - t]

    start = [lambda: torch.ones(5, dtype=torch.float64)]
    rate = torch.tensor(0.1, dtype=torch.float64)
    (ours,) = follow(RMSprop, start, gradients, lr=rate, **settings, **way)
    (plain,) = follow(RMSprop, start, gradients, lr=0.1, foreach=False, **settings)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-14)


def test_a_tensor_of_one_dimension_as_learning_rate(way):
    w = torch.ones(3)
    optimizer = RMSprop([w], lr=torch.tensor([0.5]), rho=0.0, **way)
    w.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(w, torch.full((3,), 0.5))


def test_autograd_goes_through_the_step():
    def end(start, g, lr):
        w = start.clone()
        optimizer = RMSprop([w], lr=lr, momentum=0.9, centered=True, weight_decay=0.1, differentiable=True)
        for factor in (1.0, -0.5):
            w.grad = g * factor
            optimizer.step()
        return w

    inputs = [torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([0.3, 0.1, -0.7], dtype=torch.float64)]
    inputs.append(torch.tensor(0.1, dtype=torch.float64))
    assert torch.autograd.gradcheck(end, [x.requires_grad_() for x in inputs])


def test_capturable_can_be_traced_without_graph_breaks():
    """What ``fused=True`` compiles on a GPU, by the tracer alone; and a changed learning rate is not compiled in."""
    from unvanish.torch.rmsprop.formula import Numbers, Values, guarded_
    from unvanish.torch.rmsprop.settings import Settings

    compilations = []

    def backend(graph, _inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(guarded_, backend=backend, fullgraph=True, dynamic=True)
    torch._dynamo.reset()
    settings = Settings.of(RMSprop([torch.ones(1)], momentum=0.9).param_groups[0])
    ours, plain = ([torch.ones(8), torch.zeros(8), torch.zeros(8)] for _ in range(2))
    for lr in (0.1, 0.05, 0.01):
        g = torch.linspace(-1, 1, 8)
        g[2] = float("nan")
        for (p, v, b), update in ((ours, compiled), (plain, guarded_)):
            bad = update(Values(p, v, None, b), g, settings, Numbers(torch.tensor(lr), 1.0, settings.rho, settings.eps))
            assert int(bad.sum()) == 1
    torch.testing.assert_close(ours, plain)
    assert len(compilations) == 1
