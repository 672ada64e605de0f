"""What an autograd node is: its op and kind, read from the node's name.

Node names are stable: `torch` derives them from `derivatives.yaml` (for example ``TanhBackward0``).  What is not in
these tables is kind "other": measured and reported by its own name, never taken for something else.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from unvanish.vocabulary import Kind

_SUFFIX = re.compile(r"(Backward)?\d*$")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

ACTIVATIONS = {
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "PreluKernel": "prelu",
    "RreluWithNoise": "rrelu",
    "Gelu": "gelu",
    "Silu": "silu",
    "Mish": "mish",
    "Elu": "elu",
    "Celu": "celu",
    "Softplus": "softplus",
    "LogSigmoid": "log_sigmoid",
    "Hardtanh": "hardtanh",
    "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish",
    "Softshrink": "softshrink",
    "Hardshrink": "hardshrink",
    "Threshold": "threshold",
    "Clamp": "clamp",
    "ClampMin": "clamp_min",
    "ClampMax": "clamp_max",
    "Sin": "sin",
    "Cos": "cos",
}
# position of (data, weight) among a node's inputs, where it is fixed by the op
LINEAR = {"Addmm": (1, 2), "Addmv": (2, 1), "Linear": (0, 1), "MkldnnLinear": (0, 1)}
PRODUCTS = {"Mm", "Bmm", "Mv", "Dot", "Baddbmm", "Addbmm"}
CONVOLUTIONS = {"Convolution", "ConvolutionOverrideable", "MkldnnConvolution", "CudnnConvolution", "MiopenConvolution"}
RECURRENT = {"MkldnnRnnLayer", "CudnnRnn", "MiopenRnn", "ThnnFusedLstmCell", "ThnnFusedGruCell"}
EMBEDDINGS = {"Embedding", "EmbeddingBag"}
SOFTMAXES = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "SafeSoftmax": "softmax"}
NORMALIZATIONS = {
    "NativeBatchNorm": "batch_norm",
    "CudnnBatchNorm": "batch_norm",
    "MiopenBatchNorm": "batch_norm",
    "NativeLayerNorm": "layer_norm",
    "NativeGroupNorm": "group_norm",
    "FusedRmsNorm": "rms_norm",
}
MERGES = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Cat": "cat", "Stack": "stack", "Where": "where"}
LOSSES = {
    "NllLoss": "nll",
    "NllLoss2D": "nll",
    "NllLossNd": "nll",
    "MseLoss": "mse",
    "SmoothL1Loss": "smooth_l1",
    "HuberLoss": "huber",
    "BinaryCrossEntropy": "bce",
    "BinaryCrossEntropyWithLogits": "bce_with_logits",
    "KlDiv": "kl_div",
    "CtcLoss": "ctc",
    "SoftMarginLoss": "soft_margin",
    "MultiMarginLoss": "multi_margin",
    "MultilabelMarginLoss": "multilabel_margin",
}
# the same numbers, arranged anew
VIEWS = {
    "View",
    "UnsafeView",
    "ReshapeAlias",
    "T",
    "Transpose",
    "Permute",
    "Movedim",
    "Squeeze",
    "SqueezeMultiple",
    "Unsqueeze",
    "Clone",
    "Alias",
    "Flatten",
}
# these and copies: the gradient's L2 norm is the same on both sides
ISOMETRIES = VIEWS | {
    "ToCopy",
    "AsStrided",
    "Copy",
    "ViewAsReal",
    "ViewAsComplex",
}
# structure without a unit of its own: followed through, not reported
STRUCTURE = {
    "Slice",
    "Select",
    "Expand",
    "Split",
    "SplitWithSizes",
    "Unbind",
    "Narrow",
    "Repeat",
    "ConstantPadNd",
    "Index",
    "IndexSelect",
    "Gather",
    "Chunk",
    "Unfold",
    "Roll",
    "Flip",
    "PackPaddedSequence",
}
WRITTEN_IN_PLACE = "CopySlices"  # an op on a view of its input, as ``x[:, 1:].tanh_()``; autograd hides which
FLAT = {"Round", "Floor", "Ceil", "Sign", "Trunc", "Heaviside"}  # zero derivative almost everywhere, by definition


STEMS: dict[type, str] = {}  # by class of the node, for the classes whose nodes all have one name: nearly all


def stem(node: Any) -> str:
    """Name of a node without its ``Backward0``: "Tanh", "Addmm", ..."""
    kind = type(node)
    known = STEMS.get(kind)
    if known is None:
        name = node.name().rsplit("::", 1)[-1]
        known = _SUFFIX.sub("", name)
        if kind.__name__ == name and kind.__module__ == "builtins":  # not a class of the user's, which may go away
            STEMS[kind] = known
    return known


@cache
def snake(name: str) -> str:
    """``RsqrtBackward0`` as a user would write it: ``rsqrt``."""
    return _CAMEL.sub("_", name.lstrip("_")).lower()


_BY_SETTING = ("Hardtanh", "Elu", "ClampMin", "Clamp")  # what they are depends on their limits
FIXED: dict[str, tuple[str, Kind]] = {  # what the name alone decides
    **{name: (op, "activation") for name, op in ACTIVATIONS.items() if name not in _BY_SETTING},
    **dict.fromkeys(LINEAR, ("linear", "linear")),
    **dict.fromkeys(CONVOLUTIONS, ("convolution", "convolution")),
    **{name: (snake(name), "recurrent") for name in RECURRENT},
    **{name: (op, "softmax") for name, op in SOFTMAXES.items()},
    **{name: (op, "normalization") for name, op in NORMALIZATIONS.items()},
    **dict.fromkeys(EMBEDDINGS, ("embedding", "embedding")),
    **{name: (op, "loss") for name, op in LOSSES.items()},
}


def classify(node: Any, name: str, data_inputs: int) -> tuple[str, Kind]:
    """Op and kind of a node that carries data, given how many of its inputs carry data."""
    known = FIXED.get(name)
    if known is not None:
        return known
    if name in ACTIVATIONS:
        return _activation(node, name), "activation"
    if name in PRODUCTS:
        return ("matmul", "attention") if data_inputs > 1 else ("linear", "linear")
    if name.startswith("ScaledDotProduct"):
        return "scaled_dot_product_attention", "attention"
    if name == WRITTEN_IN_PLACE:
        return snake(name), "merge" if data_inputs > 1 else "other"
    if name in MERGES and (data_inputs > 1 or name in ("Cat", "Stack")):
        return MERGES[name], "merge"
    return snake(name), "other"


def _activation(node: Any, name: str) -> str:
    """Tell ReLU6 from Hardtanh, SELU from ELU, and a one-sided clamp, best at 0, from any other clamp."""
    if name == "Hardtanh" and node._saved_min_val == 0:
        return "relu6"
    if name == "Elu" and node._saved_scale != 1:
        return "selu"
    if name == "ClampMin" or (name == "Clamp" and node._saved_max is None):
        return "relu" if node._saved_min == 0 else "clamp_min"
    return ACTIVATIONS[name]
