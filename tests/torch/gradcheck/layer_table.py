"""Every class of torch.nn with a small correct network that uses it, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Mix(nn.Module):
    """A trained scale and shift of every entry: what follows has an input that needs a gradient, of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.3)), nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Uses(nn.Module):
    """``layer`` on trained inputs; ``how`` says how it is called where that is not layer(*inputs)."""

    def __init__(self, layer: nn.Module, how: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.layer, self.how = layer, how
        self.mix = Mix() if not isinstance(layer, nn.Embedding | nn.EmbeddingBag) else None

    def forward(self, *inputs: Tensor) -> Any:
        trained = [self.mix(x) if self.mix and x.is_floating_point() else x for x in inputs]
        return self.how(self.layer, *trained) if self.how else self.layer(*trained)


def spread_loss(output: Any, target: Any) -> Tensor:
    """A scalar with another weight for every entry."""
    if isinstance(output, nn.utils.rnn.PackedSequence):
        output = output.data
    if isinstance(output, Tensor):
        flat = output.reshape(-1)
        return (flat * torch.linspace(0.5, 1.5, flat.numel(), dtype=flat.dtype)).sum()
    return sum((spread_loss(part, target) for part in output), torch.tensor(0.0))


@dataclass(frozen=True)
class Row:
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    how: Callable[..., Any] | None = None


def shape(*sizes: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(*sizes),)


def pair(*sizes: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(*sizes), torch.randn(*sizes))


FLAT, SEQ = shape(4, 6), shape(3, 4, 8)
IMAGE, VOLUME = shape(2, 4, 6, 6), shape(2, 4, 4, 4, 4)
BY_DIM = {"1d": SEQ, "2d": IMAGE, "3d": VOLUME}

ROWS: dict[str, Row] = {}


def add(name: str, inputs: Callable[[], tuple[Tensor, ...]], *args: Any, how: Any = None, **kwargs: Any) -> None:
    ROWS[name] = Row(lambda: getattr(nn, name)(*args, **kwargs), inputs, how)


for _name in (
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid",
    "Mish", "PReLU", "ReLU", "ReLU6", "RReLU", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Tanhshrink", "GLU", "AlphaDropout", "Dropout", "FeatureAlphaDropout",
):  # fmt: skip
    add(_name, FLAT)
for _name in ("LogSoftmax", "Softmax", "Softmin"):
    add(_name, FLAT, dim=1)
add("Softmax2d", IMAGE)
add("Threshold", FLAT, 0.1, -2.0)
add("Linear", FLAT, 6, 3)
add("LazyLinear", FLAT, 3)
add("Bilinear", pair(4, 6), 6, 6, 3)
for _dim, _inputs in BY_DIM.items():
    for _prefix in ("", "Lazy"):
        _channels = () if _prefix else (4,)
        add(f"{_prefix}Conv{_dim}", _inputs, *_channels, 4, 3, padding=1, groups=2)
        add(f"{_prefix}ConvTranspose{_dim}", _inputs, *_channels, 2, 3, stride=2)
        add(f"{_prefix}BatchNorm{_dim}", _inputs, *_channels)
        add(f"{_prefix}InstanceNorm{_dim}", _inputs, *_channels, affine=True)
    add(f"AvgPool{_dim}", _inputs, 2)
    add(f"MaxPool{_dim}", _inputs, 2)
    add(f"LPPool{_dim}", lambda _inputs=_inputs: (_inputs()[0].abs() + 0.1,), 2, 2)
    add(f"AdaptiveAvgPool{_dim}", _inputs, 3)
    add(f"AdaptiveMaxPool{_dim}", _inputs, 3)
    add(f"Dropout{_dim}", _inputs)
    add(f"ConstantPad{_dim}", _inputs, 1, 0.5)
    add(f"MaxUnpool{_dim}", _inputs, 2, how=lambda layer, x, d=_dim: layer(
        *getattr(nn.functional, f"max_pool{d}")(x, 2, return_indices=True)))  # fmt: skip
    for _kind in ("Circular", "Reflection", "Replication", "Zero"):
        add(f"{_kind}Pad{_dim}", _inputs, 1)
add("FractionalMaxPool2d", IMAGE, 2, output_size=3)
add("FractionalMaxPool3d", VOLUME, 2, output_size=2)
add("LocalResponseNorm", IMAGE, 2)
add("Flatten", SEQ)
add("GroupNorm", IMAGE, 2, 4)
add("LayerNorm", SEQ, 8)
add("RMSNorm", SEQ, 8)
add("ChannelShuffle", IMAGE, 2)
add("PixelShuffle", IMAGE, 2)
add("PixelUnshuffle", IMAGE, 2)
add("Fold", shape(2, 8, 9), output_size=(4, 4), kernel_size=2)
add("Unfold", IMAGE, 2)
add("Unflatten", FLAT, 1, (2, 3))
add("Upsample", IMAGE, scale_factor=2, mode="bicubic")
add("UpsamplingBilinear2d", IMAGE, scale_factor=2)
add("UpsamplingNearest2d", IMAGE, scale_factor=2)
add("CosineSimilarity", pair(4, 6))
add("PairwiseDistance", pair(4, 6))
add("Embedding", lambda: (torch.randint(7, (4, 5)),), 7, 3, padding_idx=0)
add("EmbeddingBag", lambda: (torch.randint(7, (4, 5)),), 7, 3, mode="mean")
for _name in ("RNN", "LSTM", "GRU"):
    add(_name, SEQ, 8, 5, num_layers=2, bidirectional=True, dropout=0.3)
    add(f"{_name}Cell", FLAT, 6, 5)
add("MultiheadAttention", SEQ, 8, 2, batch_first=True, dropout=0.1, how=lambda layer, x: layer(x, x, x))
add("TransformerEncoderLayer", SEQ, 8, 2, 16, batch_first=True)
add("TransformerDecoderLayer", pair(3, 4, 8), 8, 2, 16, batch_first=True)
add("Transformer", pair(3, 4, 8), 8, 2, 1, 1, 16, batch_first=True)
ROWS["TransformerEncoder"] = Row(
    lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    ),
    SEQ,
)
ROWS["TransformerDecoder"] = Row(
    lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2), pair(3, 4, 8)
)
ROWS["Sequential"] = Row(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), FLAT)


def classes(count: int, rows: int = 4) -> Callable[[], Tensor]:
    return lambda: torch.randint(count, (rows,))


def signs() -> Tensor:
    return torch.randint(2, (4,)).float() * 2 - 1


def loss(name: str, target: Callable[[], Any], how: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """A loss as a layer: ``how(layer, trained input, target)``."""
    make = lambda: getattr(nn, name)(*args, **kwargs)  # noqa: E731 - a closure per row
    ROWS[name] = Row(make, lambda: (torch.randn(4, 6), target()), how)


def plain(layer: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    return layer(x, t)


def half(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :3], x[:, 3:]


for _name in ("MSELoss", "L1Loss", "HuberLoss", "SmoothL1Loss", "PoissonNLLLoss"):
    loss(_name, lambda: torch.rand(4, 6), plain)
loss("BCELoss", lambda: torch.rand(4, 6).round().long(), lambda m, x, t: m(x.sigmoid(), t.to(x.dtype)))
loss("BCEWithLogitsLoss", lambda: torch.rand(4, 6).round().long(), lambda m, x, t: m(x, t.to(x.dtype)))
loss("KLDivLoss", lambda: torch.rand(4, 6), lambda m, x, t: m(x.log_softmax(1), t.softmax(1)), reduction="batchmean")
loss("CrossEntropyLoss", classes(6), plain, weight=torch.rand(6), label_smoothing=0.1)
loss("NLLLoss", classes(6), lambda m, x, t: m(x.log_softmax(1), t))
loss("NLLLoss2d", classes(6), lambda m, x, t: m(x.log_softmax(1), t))
loss("MultiMarginLoss", classes(6), plain)
loss("MultiLabelMarginLoss", lambda: torch.tensor([[1, 3, -1, 0, 0, 0]] * 4), plain)
loss("MultiLabelSoftMarginLoss", lambda: torch.rand(4, 6).round().long(), lambda m, x, t: m(x, t.to(x.dtype)))
loss("SoftMarginLoss", lambda: torch.ones(4, 6).long(), lambda m, x, t: m(x, t.to(x.dtype)))
loss("HingeEmbeddingLoss", lambda: torch.randint(2, (4, 6)) * 2 - 1, plain)
loss("CosineEmbeddingLoss", lambda: signs().long(), lambda m, x, t: m(*half(x), t))
loss("MarginRankingLoss", lambda: signs().long(), lambda m, x, t: m(x[:, 0], x[:, 1], t))
loss("GaussianNLLLoss", lambda: torch.rand(4, 3), lambda m, x, t: m(half(x)[0], t, half(x)[1].exp()))
loss("TripletMarginLoss", classes(2), lambda m, x, t: m(x[:, :2], x[:, 2:4], x[:, 4:]))
loss("TripletMarginWithDistanceLoss", classes(2), lambda m, x, t: m(x[:, :2], x[:, 2:4], x[:, 4:]))
loss("AdaptiveLogSoftmaxWithLoss", classes(8), plain, 6, 8, cutoffs=[2, 4])
loss("LinearCrossEntropyLoss", classes(5), plain, 6, 5)
ROWS["CTCLoss"] = Row(
    nn.CTCLoss,
    lambda: (torch.randn(7, 4, 6), torch.randint(1, 6, (4, 3))),
    lambda m, x, t: m(x.log_softmax(2), t, torch.full((4,), 7), torch.full((4,), 3)),
)

EXCLUDED = {
    "CrossMapLRN2d": "its derivative is wrong in PyTorch: test_gradcheck_wrong.py has it as a find",
    "Module": "the base class, without a forward of its own",
    "Container": "an old name of Module",
    "RNNBase": "the base class of RNN, LSTM, GRU",
    "RNNCellBase": "the base class of the cells",
    "ModuleDict": "never called: it only holds modules",
    "ModuleList": "never called: it only holds modules",
    "ParameterDict": "never called: it only holds parameters",
    "ParameterList": "never called: it only holds parameters",
    "DataParallel": "needs several GPUs",
    "SyncBatchNorm": "needs a GPU and a process group",
}
