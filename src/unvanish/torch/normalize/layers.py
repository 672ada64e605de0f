"""The norm that fits behind a layer: which axes, how many features."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

Kind = Literal["batch", "layer", "group", "rms"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Layer = (
    nn.Linear
    | nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
)  # fmt: skip

_GROUPS = 32  # Wu and He 2018, section 3: the default, and best, of 1 to 64


class FeaturesLast(nn.Module):
    """A norm for (samples, features) applied to (..., features): every position counts as a sample.

    ``nn.BatchNorm1d`` and ``nn.GroupNorm`` would take the second axis of (samples, time, features) for the features.

    Args:
        norm: a norm of (samples, features).
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., features)."""
        normal: Tensor = self.norm(x.reshape(-1, x.shape[-1]))
        return normal.reshape(x.shape)


class ChannelsLast(nn.Module):
    """A norm over the last axis applied to the channels of (samples, channels, ...), position by position.

    Args:
        norm: a norm of (..., channels).
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (samples, channels, ...)."""
        normal: Tensor = self.norm(x.movedim(1, -1))
        return normal.movedim(-1, 1)


def features_of(layer: Layer) -> int:
    """How many features or channels a layer makes."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def norm_for(kind: Kind, layer: Layer, axes: int) -> nn.Module:
    """The norm behind ``layer`` whose output has ``axes`` axes, samples first; on the layer's device, in its dtype."""
    features = features_of(layer)
    norm = _behind_linear(kind, features, axes) if isinstance(layer, nn.Linear) else _behind_conv(kind, features, axes)
    return norm.to(layer.weight.device, layer.weight.dtype).train(layer.training)


def _behind_linear(kind: Kind, features: int, axes: int) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(features)
    if kind == "rms":
        return nn.RMSNorm(features)
    norm = nn.BatchNorm1d(features) if kind == "batch" else nn.GroupNorm(_groups(features), features)
    return norm if axes == 2 else FeaturesLast(norm)


def _behind_conv(kind: Kind, channels: int, axes: int) -> nn.Module:
    if kind == "batch":
        return {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[axes](channels)
    if kind == "rms":
        return ChannelsLast(nn.RMSNorm(channels))
    return nn.GroupNorm(1 if kind == "layer" else _groups(channels), channels)


def _groups(features: int) -> int:
    """The largest number of equal groups up to 32 with at least two features each: one alone would become 0."""
    return next(groups for groups in range(min(_GROUPS, max(1, features // 2)), 0, -1) if features % groups == 0)
