"""PyTorch's own layers that compute in the dtype they are given, draw nothing, and have no convention of their own.

They need no watch over casts, no replay of random numbers and no walk through their graph, which for a small layer
cost more than its own work.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as _module

SMOOTH: frozenset[type[nn.Module]] = frozenset(
    {
        nn.Linear, nn.Bilinear,
        nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
        nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
        nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
        nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
        nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink,
        nn.Softmax, nn.LogSoftmax,
    }
)  # fmt: skip
PLAIN: frozenset[type[nn.Module]] = SMOOTH | {
    nn.Identity, nn.Flatten, nn.Unflatten,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish,
}  # fmt: skip
_OWN_FORWARD = {kind: kind.forward for kind in PLAIN}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


def is_plain(module: nn.Module) -> bool:
    """One of these, as PyTorch made it: nothing of the user's runs within."""
    kind = type(module)
    return (
        _OWN_FORWARD.get(kind) is kind.forward
        and "forward" not in vars(module)
        and not any(getattr(module, name) for name in _HOOKS)
        and not any(getattr(_module, name) for name in _GLOBAL_HOOKS)
        and not any(
            p is not None and (type(p) is not nn.Parameter or p._backward_hooks) for p in module._parameters.values()
        )
        and not module._modules
    )
