"""One of the two processes of test_clip_distributed: rendezvous file and rank as arguments."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from unvanish.torch.clip import (
    AutoClip,
    ClipReport,
    clip_grad_global_norm_,
    clip_grad_tensor_norm_,
    clip_grad_unit_norm_,
    clip_grad_value_,
)

Clip = Callable[..., ClipReport]
PLAIN: list[Clip] = [clip_grad_global_norm_, clip_grad_tensor_norm_, clip_grad_value_, clip_grad_unit_norm_]
OTHERS: list[Clip] = [
    lambda params, bound: AutoClip(0.5)(params),
    lambda params, bound: clip_grad_tensor_norm_(params, floor=bound * 1e3),
]
CUTS = ([Shard(0)], [Shard(1)])


def numbers(size: float) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape) * size for shape in ((5, 4), (3, 6), (4,), (1, 3), (7, 2), (3,))]


def distributed(plain: list[Tensor], world: DeviceMesh, other: DeviceMesh, square: DeviceMesh) -> list[Tensor]:
    """Unevenly cut, cut along columns, replicated, empty on one process, another mesh, and plain."""
    return [
        distribute_tensor(plain[0], world, [Shard(0)]),
        distribute_tensor(plain[1], world, [Shard(1)]),
        distribute_tensor(plain[2], world, [Replicate()]),
        distribute_tensor(plain[3], other, [Shard(0)]),
        distribute_tensor(plain[4], square, [Replicate(), Shard(0)]),
        plain[5].clone(),
    ]


def with_grads(weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    for weight, grad in zip(weights, gradients, strict=True):
        weight.grad = grad
    return weights


def layer(make: Callable[[], nn.Module], weight: Tensor, grad: Tensor) -> Any:
    made: Any = make()
    made.weight = nn.Parameter(weight)
    made.weight.grad = grad
    return made


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same(got: list[Tensor], wanted: list[Tensor]) -> None:
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(whole(one.grad), two.grad, rtol=1e-5, atol=3e-45)


def test_as_in_one_process(meshes: tuple[DeviceMesh, DeviceMesh, DeviceMesh]) -> None:
    for size in (1.0, 1e-30, 1e30, 1e-43):
        for clip in PLAIN + OTHERS:
            plain = with_grads(numbers(0.1), numbers(size))
            parts = with_grads(distributed(numbers(0.1), *meshes), distributed(numbers(size), *meshes))
            bound = 1e-3 if clip is clip_grad_unit_norm_ else 1e-3 * size
            report, wanted = clip(parts, bound), clip(plain, bound)
            assert abs(report.norm / wanted.norm - 1) < 1e-6, (clip, size, report, wanted)
            assert report.tensors == wanted.tensors
            same(parts, plain)


def test_nothing_is_written_when_nothing_is_clipped(world: DeviceMesh) -> None:
    for way in CUTS:
        part = distribute_tensor(torch.ones(4, 4), world, way)
        part.grad = distribute_tensor(torch.ones(4, 4), world, way)
        before = part.grad.to_local()._version
        for clip in [*PLAIN, OTHERS[0]]:
            assert clip([part], 1e3).clipped == 0
        assert part.grad.to_local()._version == before


def test_nan_in_one_process(world: DeviceMesh, place: int) -> None:
    values = torch.arange(16.0).view(4, 4)
    values[3 * place, 3 * place] = torch.nan

    def linear() -> nn.Module:
        return nn.Linear(4, 4, bias=False)

    for clip in PLAIN:
        for way in CUTS:
            weight, grad = (distribute_tensor(tensor, world, way) for tensor in (torch.ones(4, 4), values))
            model = layer(linear, weight, grad)
            with pytest.raises(ValueError, match=r"'weight'.*1 of 16"):
                clip(model, 1.0)
            report = clip(model, 1.0, nonfinite="skip")
            assert report.skipped
            assert report.nonfinite == 1
            assert math.isnan(report.norm), "in the process that has none as well"
            plain = layer(linear, torch.ones(4, 4), values.clone())
            assert clip(model, 1.0, nonfinite="zero").nonfinite == 1
            clip(plain, 1.0, nonfinite="zero")
            same([model.weight], [plain.weight])


def test_sums_not_summed_up_yet(world: DeviceMesh, rank: int) -> None:
    weight = distribute_tensor(torch.zeros(4), world, [Replicate()])
    weight.grad = DTensor.from_local(torch.full((4,), 3.0 + rank), world, [Partial()])
    assert abs(clip_grad_global_norm_([weight], 1.0).norm - 14.0) < 1e-5
    torch.testing.assert_close(whole(weight.grad), torch.full((4,), 0.5))


def test_fully_sharded_model(world: DeviceMesh) -> None:
    torch.manual_seed(0)
    sharded, plain = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(2))
    sharded.load_state_dict(plain.state_dict())
    torch.distributed.fsdp.fully_shard(sharded, mesh=world)
    batch = torch.randn(6, 4)
    for model in (sharded, plain):
        model(batch).square().sum().backward()
    for clip in PLAIN[::-1]:
        report, wanted = clip(sharded, 0.01), clip(plain, 0.01)
        assert abs(report.norm / wanted.norm - 1) < 1e-5
        same(list(sharded.parameters()), list(plain.parameters()))


def test_groups_across_processes_are_refused(world: DeviceMesh) -> None:
    cut = [distribute_tensor(torch.ones(4, 2, 2), world, [Shard(0)]) for _ in range(2)]
    model = layer(lambda: nn.ConvTranspose1d(4, 4, 2, groups=2, bias=False), *cut)
    with pytest.raises(ValueError, match="cut up among processes"):
        clip_grad_unit_norm_(model)


def main() -> None:
    rendezvous, rank = sys.argv[1], int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    world, other, square = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    test_as_in_one_process((world, other, square))
    test_nothing_is_written_when_nothing_is_clipped(world)
    for place in range(2):
        test_nan_in_one_process(world, place)
    test_sums_not_summed_up_yet(world, rank)
    if hasattr(torch.distributed.fsdp, "fully_shard"):
        test_fully_sharded_model(world)
    test_groups_across_processes_are_refused(world)
    sys.stdout.write("all cases")
    dist.barrier()  # who leaves first takes the connections of the other away
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
