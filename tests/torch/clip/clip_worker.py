"""One of the two processes of test_clip_distributed: rendezvous file and rank as arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

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

SIZES = [1.0, 1e-30, 1e30, 1e-43]
CLIPS: list[Callable[[Any, float], ClipReport]] = [
    clip_grad_global_norm_,
    clip_grad_tensor_norm_,
    clip_grad_value_,
    clip_grad_unit_norm_,
    lambda params, bound: AutoClip(0.5)(params),
    lambda params, bound: clip_grad_tensor_norm_(params, floor=bound * 1e3),
]


def grads(size: float) -> list[Tensor]:
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


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same(got: list[Tensor], wanted: list[Tensor]) -> None:
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(whole(one.grad), two.grad, rtol=1e-5, atol=3e-45)


def main() -> None:
    rendezvous, rank = sys.argv[1], int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    world, other, square = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    meshes = (world, other, square)

    for size in SIZES:
        for clip in CLIPS:
            plain = with_grads(grads(0.1), grads(size))
            parts = with_grads(distributed(grads(0.1), *meshes), distributed(grads(size), *meshes))
            bound = 1e-3 * size if clip is not clip_grad_unit_norm_ else 1e-3
            report, wanted = clip(parts, bound), clip(plain, bound)
            assert abs(report.norm / wanted.norm - 1) < 1e-6, (clip, size, report, wanted)
            assert report.tensors == wanted.tensors
            same(parts, plain)

    for way in ([Shard(0)], [Shard(1)]):  # nothing clipped, nothing written
        (part,) = with_grads(
            [distribute_tensor(torch.ones(4, 4), world, way)], [distribute_tensor(torch.ones(4, 4), world, way)]
        )
        before = part.grad.to_local()._version
        for clip in CLIPS[:5]:
            assert clip([part], 1e3).clipped == 0
        assert part.grad.to_local()._version == before

    for place in range(2):  # NaN on one process only: all processes agree
        for clip in (clip_grad_global_norm_, clip_grad_tensor_norm_, clip_grad_value_, clip_grad_unit_norm_):
            for way in ([Shard(0)], [Shard(1)]):
                values = torch.arange(16.0).view(4, 4)
                values[3 * place, 3 * place] = torch.nan
                model = nn.Linear(4, 4, bias=False)
                model.weight = nn.Parameter(distribute_tensor(torch.ones(4, 4), world, way))
                model.weight.grad = distribute_tensor(values, world, way)
                try:
                    clip(model, 1.0)
                except ValueError as error:
                    assert "'weight'" in str(error), error
                    assert "1 of 16" in str(error), error
                else:
                    raise AssertionError("a NaN went through")
                report = clip(model, 1.0, nonfinite="skip")
                assert report.skipped
                assert report.nonfinite == 1
                plain = nn.Linear(4, 4, bias=False)
                plain.weight.data.fill_(1.0)
                plain.weight.grad = values.clone()
                assert clip(model, 1.0, nonfinite="zero").nonfinite == 1
                clip(plain, 1.0, nonfinite="zero")
                same([model.weight], [plain.weight])

    weight = distribute_tensor(torch.zeros(4), world, [Replicate()])  # a sum that is not yet summed up
    weight.grad = DTensor.from_local(torch.full((4,), 3.0 + rank), world, [Partial()])
    assert abs(clip_grad_global_norm_([weight], 1.0).norm - 14.0) < 1e-5
    torch.testing.assert_close(whole(weight.grad), torch.full((4,), 0.5))

    if hasattr(torch.distributed.fsdp, "fully_shard"):
        torch.manual_seed(0)
        sharded, plain = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(2))
        sharded.load_state_dict(plain.state_dict())
        torch.distributed.fsdp.fully_shard(sharded, mesh=world)
        batch = torch.randn(6, 4)
        for model in (sharded, plain):
            model(batch).square().sum().backward()
        for clip in (clip_grad_unit_norm_, clip_grad_global_norm_):
            report, wanted = clip(sharded, 0.01), clip(plain, 0.01)
            assert abs(report.norm / wanted.norm - 1) < 1e-5
            same(list(sharded.parameters()), list(plain.parameters()))

    transposed = nn.ConvTranspose1d(4, 4, 2, groups=2, bias=False)
    transposed.weight = nn.Parameter(distribute_tensor(torch.ones(4, 2, 2), world, [Shard(0)]))
    transposed.weight.grad = distribute_tensor(torch.ones(4, 2, 2), world, [Shard(0)])
    try:
        clip_grad_unit_norm_(transposed)
    except ValueError as error:
        assert "cut up among processes" in str(error), error
    else:
        raise AssertionError("groups across processes went through")

    print("all cases")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
