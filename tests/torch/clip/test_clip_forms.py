"""Every form a gradient or a list of parameters can have, and what NaN and Inf do, for every clipper."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from clip_oracle import Untouched, entries, near, norm_of, parameters, scaled
from torch import Tensor, nn

from unvanish.torch.clip import (
    AutoClip,
    ClipReport,
    ZClip,
    clip_grad_global_norm_,
    clip_grad_tensor_norm_,
    clip_grad_unit_norm_,
    clip_grad_value_,
)

pytestmark = pytest.mark.usefixtures("both_readings")
Clip = Callable[..., ClipReport]


def _auto(parameters: Any, bound: float, *, nonfinite: Any = "raise") -> ClipReport:
    clip = AutoClip(1e-9, nonfinite=nonfinite)
    clip.load_state_dict({"norms": [bound, bound]})
    return clip(parameters)


def _zclip(parameters: Any, bound: float, *, nonfinite: Any = "raise") -> ClipReport:
    clip = ZClip(warmup=2, nonfinite=nonfinite)
    clip.load_state_dict({"first": [bound, bound], "mean": bound, "deviation": 0.0})
    return clip(parameters)


def _units(parameters: Any, bound: float, *, nonfinite: Any = "raise") -> ClipReport:
    return clip_grad_unit_norm_(parameters, bound, eps=1.0, nonfinite=nonfinite)  # weights here are 0, so taken as 1


ALL: list[Any] = [clip_grad_global_norm_, clip_grad_tensor_norm_, clip_grad_value_, _auto, _zclip, _units]
every = pytest.mark.parametrize("clip", ALL, ids=["global", "tensor", "value", "auto", "zclip", "unit"])


def one(clip: Clip, grad: Tensor, bound: float) -> Tensor:
    """The gradient as this clipper leaves it."""
    (parameter,) = parameters(grad)
    assert clip([parameter], bound).clipped == 1
    return parameter.grad


# parameters


@every
def test_module_names_generator_list_and_single_tensor(clip: Clip) -> None:
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data.zero_()
    ways: list[Callable[[], Any]] = [
        lambda: layer,
        layer.parameters,
        layer.named_parameters,
        lambda: [layer.weight],
        lambda: layer.weight,
        {"w": layer.weight}.items,
    ]
    after = []
    for way in ways:
        layer.weight.grad = torch.full((2, 3), 5.0)
        assert clip(way(), 1.0).tensors == 1
        after.append(layer.weight.grad)
        assert float(after[-1].max()) < 5
    assert all(torch.equal(a, after[0]) for a in after)


@every
def test_none_empty_and_nothing(clip: Clip) -> None:
    empty = torch.zeros(0)
    for given in ([], parameters(None, None), parameters(torch.zeros(0)), nn.ReLU(), parameters(empty, None)):
        assert clip(given, 1.0) == ClipReport(norm=0.0, tensors=0)
    some = parameters(None, torch.full((2,), 30.0), torch.zeros(0, 3), None)
    assert clip(some, 1.0).tensors == 1
    assert some[0].grad is None
    assert norm_of(some[1].grad) <= 1.5


@every
def test_an_empty_generator_warns(clip: Clip) -> None:
    layer = nn.Linear(2, 2)
    used_up = layer.parameters()
    list(used_up)
    with pytest.warns(UserWarning, match="used up before") as caught:
        clip(used_up, 1.0)
    assert caught[0].filename.endswith("test_clip_forms.py")


@every
@pytest.mark.parametrize("item", [{"params": []}, 3.0, ("w", 3.0), "w"])
def test_things_that_are_no_parameters(clip: Clip, item: object) -> None:
    with pytest.raises(ValueError, match=r"item 1 of the parameters is a .*Expected.*Pass"):
        clip([torch.zeros(1), item], 1.0)


@every
@pytest.mark.parametrize("wrong", [None, 3, nn.Linear(1, 1).parameters, torch.optim.SGD([torch.zeros(1)])])
def test_what_holds_no_parameters(clip: Clip, wrong: object) -> None:
    """Forgotten brackets, or the optimizer."""
    with pytest.raises(ValueError, match=r"the parameters are a \w+\. Expected.*Pass model, model.parameters\(\)"):
        clip(wrong, 1.0)


@every
def test_zero_gradients_stay(clip: Clip) -> None:
    params = parameters(torch.zeros(3), torch.zeros(2, 2))
    watch = Untouched(params)
    report = clip(params, 1e-30)
    assert (report.norm, report.zero, report.clipped) == (0.0, 2, 0)
    watch.check()


@every
@pytest.mark.parametrize(
    "grad",
    [
        torch.tensor([1e-44, -3e-44]),
        torch.tensor([[1e-30, 2e-30]]),
        torch.tensor([0.3, -0.2], dtype=torch.float16),
        torch.tensor([0.3, -0.2], dtype=torch.bfloat16),
        torch.tensor([0.1 + 0.2j, 0.3j]),
        torch.tensor([1e-200, 0.1], dtype=torch.float64),
    ],
    ids=["subnormal", "tiny", "float16", "bfloat16", "complex", "float64"],
)
def test_nothing_is_written_when_nothing_is_clipped(clip: Clip, grad: Tensor) -> None:
    params = parameters(grad, grad.clone().unsqueeze(0).expand(3, *grad.shape).contiguous())
    watch = Untouched(params)
    assert clip(params, 10.0).clipped == 0
    watch.check()


@every
def test_nothing_is_written_in_other_forms(clip: Clip) -> None:
    sparse = torch.sparse_coo_tensor([[0, 0, 2]], [[1e-3], [2e-3], [3e-3]], (4, 1), check_invariants=True)
    params = parameters(sparse, torch.full((1,), 0.1).expand(4), torch.tensor([0.1j]).conj())
    before = [parameter.grad for parameter in params]
    assert clip(params, 10.0).clipped == 0
    assert all(parameter.grad is grad for parameter, grad in zip(params, before, strict=True))
    assert not sparse.is_coalesced()


# gradients


@every
@pytest.mark.parametrize("layout", ["transposed", "gaps", "channels_last", "expanded", "conj", "neg", "offset"])
def test_memory_layouts(clip: Clip, layout: str) -> None:
    torch.manual_seed(0)
    base = torch.randn(2, 6, 4, 4, dtype=torch.complex64 if layout in ("conj", "neg") else torch.float32) * 3
    made = {
        "transposed": lambda: base.clone().transpose(0, 1),
        "gaps": lambda: base.clone()[:, ::2],
        "channels_last": lambda: base.clone().to(memory_format=torch.channels_last),
        "expanded": lambda: base.clone()[:, :, :1].expand(-1, -1, 3, -1),
        "conj": lambda: base.clone().conj(),
        "neg": lambda: base.clone().conj().imag,
        "offset": lambda: base.clone()[1:],
    }[layout]
    plain = one(clip, made().clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg(), 1.0)
    got = one(clip, made(), 1.0)
    torch.testing.assert_close(got.resolve_conj(), plain, rtol=1e-5, atol=1e-7)


@every
def test_gaps_are_not_written(clip: Clip) -> None:
    memory = torch.full((4, 6), 7.0)
    one(clip, memory[:, ::2], 0.5)
    assert torch.equal(memory[:, 1::2], torch.full((4, 3), 7.0))


@every
@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse_gradients(clip: Clip, coalesced: bool) -> None:
    """torch: NotImplementedError since 2.0. Entries named twice count with their sum."""
    grad = torch.sparse_coo_tensor([[0, 3, 0]], [[1.0, 2.0], [3.0, 4.0], [5.0, -6.0]], (5, 2), check_invariants=True)
    grad = grad.coalesce() if coalesced else grad
    size, wanted = norm_of(grad), one(clip, grad.to_dense(), 0.25)
    (parameter,) = parameters(grad)
    report = clip([parameter], 0.25)
    assert report.norm == pytest.approx(size, rel=1e-6)
    assert parameter.grad.is_sparse
    torch.testing.assert_close(parameter.grad.to_dense(), wanted, rtol=1e-6, atol=0)
    torch.optim.SGD([parameter], lr=1.0).step()
    torch.testing.assert_close(parameter, -wanted)


def test_sparse_embedding_units_use_their_own_rows() -> None:
    layer = nn.Embedding(6, 3, sparse=True)
    layer(torch.tensor([1, 4, 4])).sum().backward()
    dense = copy.deepcopy(layer)
    dense.weight.grad = layer.weight.grad.to_dense()
    assert clip_grad_unit_norm_(layer, 0.01).clipped == clip_grad_unit_norm_(dense, 0.01).clipped == 1
    torch.testing.assert_close(layer.weight.grad.to_dense(), dense.weight.grad)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("clip", [clip_grad_global_norm_, clip_grad_tensor_norm_, clip_grad_value_])
def test_compressed_sparse_gradients(clip: Clip) -> None:
    grad = torch.tensor([[0.0, 3.0], [4.0, 0.0]]).to_sparse_csr()
    wanted = one(clip, grad.to_dense(), 1.0)
    parameter = torch.eye(2).to_sparse_csr()
    parameter.grad = grad
    assert clip(parameter, 1.0).norm == 5.0
    torch.testing.assert_close(parameter.grad.to_dense(), wanted)


@pytest.mark.parametrize("clip", [clip_grad_global_norm_, clip_grad_tensor_norm_, _units])
def test_complex_gradients_keep_their_phase(clip: Clip) -> None:
    grad = torch.tensor([3 + 4j, 1 - 2j])
    got = one(clip, grad.clone(), 1.0)
    near(got, scaled(entries(grad), 1.0, norm_of(grad)))


def test_mixed_dtypes_share_one_norm() -> None:
    kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    params = parameters(*(torch.full((4,), 3.0, dtype=dtype) for dtype in kinds), torch.full((2,), 3j))
    report = clip_grad_global_norm_(params, 1.0)
    assert report.norm == pytest.approx(3 * math.sqrt(18), rel=1e-6)
    for parameter in params:
        assert float(parameter.grad.abs().max()) == pytest.approx(1 / math.sqrt(18), rel=5e-3)
    assert [parameter.grad.dtype for parameter in params[:4]] == kinds


@every
def test_mixed_dtypes_and_nothing_else(clip: Clip) -> None:
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.complex128]
    for bound, clipped in ((100.0, 0), (1e-2, 6)):
        params = parameters(*(torch.full((2, 4), 3.0, dtype=dtype) for dtype in kinds))
        report = clip(params, bound)
        assert (report.tensors, report.clipped) == (6, clipped)
        assert report.norm == pytest.approx(3 * math.sqrt(48), rel=1e-6)
        assert [parameter.grad.dtype for parameter in params] == kinds
        assert all((float(parameter.grad.abs().max()) < 0.1) == bool(clipped) for parameter in params)


@every
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_devices_without_float64(clip: Clip, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's: what needs float64 goes to the host."""
    grad = torch.tensor([[3.0, -4.0], [0.1, 0.2]]) * size
    wanted, got = parameters(grad.clone()), parameters(grad.clone())
    report = clip(wanted, 1e-3)
    monkeypatch.setattr("unvanish.torch.clip.norms._NO_DOUBLE", ("cpu",))
    assert clip(got, 1e-3) == report
    torch.testing.assert_close(got[0].grad, wanted[0].grad)


@every
def test_meta_gradients_are_refused_by_name(clip: Clip) -> None:
    meta = nn.Linear(2, 2, device="meta")
    meta.weight.grad = torch.zeros(2, 2, device="meta")
    with pytest.raises(ValueError, match=r"'weight'.* meta device .*Expected"):
        clip(meta, 1.0)


@every
def test_a_parameter_given_twice_counts_once(clip: Clip) -> None:
    """torch: the norm is multiplied by the root of 2, and the gradient scaled twice."""
    (parameter,) = parameters(torch.tensor([30.0, 40.0]))
    wanted = one(clip, torch.tensor([30.0, 40.0]), 1.0)
    report = clip([parameter, parameter], 1.0)
    assert (report.norm, report.tensors) == (50.0, 1)
    assert torch.equal(parameter.grad, wanted)


@every
def test_two_parameters_with_one_gradient(clip: Clip) -> None:
    wanted = one(clip, torch.tensor([30.0, 40.0]), 1.0)
    shared = torch.tensor([30.0, 40.0])
    same = parameters(shared, shared)
    views = parameters(shared.clone(), None)
    views[1].data = torch.zeros(2)
    views[1].grad = views[0].grad.view(2).detach()
    expanded = parameters(torch.tensor([30.0]).expand(2), None)
    expanded[1].data = torch.zeros(2)
    expanded[1].grad = expanded[0].grad
    for params in (same, views):
        report = clip(params, 1.0)
        assert (report.norm, report.tensors) == (50.0, 1)
        assert all(torch.equal(parameter.grad, wanted) for parameter in params)
    assert clip(expanded, 1.0).tensors == 1
    assert torch.equal(expanded[0].grad, expanded[1].grad)
    assert float(expanded[0].grad.max()) < 30


@every
def test_tied_weights(clip: Clip) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.grad = torch.ones(3, 3)
    assert clip([*model[0].parameters(), *model[1].parameters()], 1e-3).tensors == 1
    model[0].weight.grad = torch.ones(3, 3)
    assert clip(model, 1e-3).norm == pytest.approx(3.0)


@every
def test_gradients_that_carry_a_graph(clip: Clip) -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    (grad,) = torch.autograd.grad(weight.square().sum(), weight, create_graph=True)
    weight.grad = grad
    assert clip([weight], 0.1).clipped == 1
    assert float(weight.grad.detach().norm()) < 1
    assert torch.is_grad_enabled()


# NaN and Inf

BAD = [math.nan, math.inf, -math.inf]


@every
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_raise_names_the_parameter_and_changes_nothing(clip: Clip, bad: float, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).to(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 50.0)
    model[2].weight.grad[1, 0] = bad
    watch = Untouched(list(model.parameters()))
    called, numbered = "'2.weight'", "number 2 of"
    for given, name in ((model, called), (model.named_parameters(), called), (model.parameters(), numbered)):
        with pytest.raises(ValueError, match=rf"{name}.*in 1 of 4 entries.*Expected finite.*nonfinite="):
            clip(given, 1.0)
    watch.check()


@every
@pytest.mark.parametrize("bad", BAD)
def test_skip_writes_nothing_and_says_so(clip: Clip, bad: float) -> None:
    params = parameters(torch.tensor([bad, 3.0]), torch.tensor([4.0, bad]), torch.tensor([99.0]))
    watch = Untouched(params)
    report = clip(params, 1.0, nonfinite="skip")
    watch.check()
    assert (report.skipped, report.nonfinite, report.clipped, report.raised) == (True, 2, 0, 0)
    assert not math.isfinite(report.norm)
    assert "skip this step" in str(report)


@every
@pytest.mark.parametrize("bad", BAD)
def test_zero_drops_the_entries_and_clips_the_rest(clip: Clip, bad: float) -> None:
    params = parameters(torch.tensor([bad, 30.0]), torch.tensor([40.0, bad]), torch.tensor([bad]), torch.tensor([0.0]))
    clean = parameters(torch.tensor([0.0, 30.0]), torch.tensor([40.0, 0.0]), torch.zeros(1), torch.zeros(1))
    wanted = clip(clean, 1.0)
    report = clip(params, 1.0, nonfinite="zero")
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(params, clean, strict=True))
    assert (report.norm, report.zero, report.clipped) == (50.0, 2, 2) == (wanted.norm, wanted.zero, wanted.clipped)
    assert (report.nonfinite, report.skipped) == (3, False)


@every
@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_policies_do_nothing_to_finite_gradients(clip: Clip, policy: str) -> None:
    params = parameters(torch.tensor([1e-3, -2e-3]), torch.tensor([[3e-3]]))
    watch = Untouched(params)
    report = clip(params, 10.0, nonfinite=policy)
    watch.check()
    assert not report.skipped
    assert report.nonfinite == 0


@every
def test_nonfinite_entries_of_sparse_and_complex_gradients(clip: Clip) -> None:
    sparse = torch.sparse_coo_tensor([[0, 2]], [[math.nan], [3.0]], (3, 1), check_invariants=True)
    params = parameters(sparse, torch.tensor([complex(math.inf, math.nan), 4j]))
    report = clip(params, 100.0, nonfinite="zero")
    assert (report.nonfinite, report.norm) == (3, 5.0)
    assert params[0].grad.to_dense().tolist() == [[0.0], [0.0], [3.0]]
    assert params[1].grad.tolist() == [0j, 4j]


@every
def test_large_but_finite_is_not_nonfinite(clip: Clip) -> None:
    """torch: the norm of 1e20 overflows and all gradients become 0, in silence."""
    params = parameters(torch.full((4,), 1e20), torch.full((2,), 3e38))
    report = clip(params, 1.0)
    assert report.nonfinite == 0
    assert report.norm == pytest.approx(math.sqrt(2) * 3e38, rel=1e-6)
    assert float(params[1].grad.min()) > 0.1


@pytest.mark.parametrize("make", [*ALL[:3], _units, AutoClip, ZClip])
def test_an_unknown_policy(make: Any) -> None:
    arguments = (parameters(torch.ones(1)), 1.0) if make not in (AutoClip, ZClip) else ()
    with pytest.raises(ValueError, match="nonfinite='ignore' is no policy"):
        make(*arguments, nonfinite="ignore")


# what stays as it was


@every
def test_random_streams_and_parameters_are_left_alone(clip: Clip) -> None:
    params = parameters(torch.full((3, 4), 20.0), torch.full((70_000,), 1e-30))
    values, state = [p.clone() for p in params], torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip(params, 1.0)
    assert all(torch.equal(p, v) and not p.requires_grad for p, v in zip(params, values, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_report_reads_well() -> None:
    report = ClipReport(norm=1.5, tensors=4, clipped=1, raised=2, zero=1, nonfinite=3)
    assert str(report) == (
        "gradient norm 1.5 over 4 tensors, 1 clipped, 2 raised to the floor, 1 exactly zero, 3 entries NaN or Inf"
    )
    with pytest.raises(AttributeError):
        report.norm = 2.0  # type: ignore[misc]
