"""What a torch function does to a network's signal, by the function's name.

What is not in these tables is of kind "other": kept, and never taken for something else.
"""

from __future__ import annotations

from typing import Literal

OpKind = Literal[
    "linear",
    "convolution",
    "transposed_convolution",
    "recurrent",
    "embedding",
    "normalization",
    "activation",
    "softmax",
    "attention",
    "merge",
    "scale",
    "view",
    "pool",
    "dropout",
    "other",
]

_NAMES: dict[OpKind, str] = {
    "linear": "linear bilinear",
    "convolution": "conv1d conv2d conv3d",
    "transposed_convolution": "conv_transpose1d conv_transpose2d conv_transpose3d",
    "recurrent": "rnn_tanh rnn_relu lstm gru rnn_tanh_cell rnn_relu_cell lstm_cell gru_cell",
    "embedding": "embedding embedding_bag",
    "normalization": "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize",
    "activation": "relu relu6 leaky_relu prelu rrelu gelu silu mish elu selu celu glu softplus log_sigmoid hardtanh "
    "hardsigmoid hardswish softshrink hardshrink tanhshrink softsign threshold tanh sigmoid sin cos clamp clamp_min "
    "clamp_max clip expit square exp erf",
    "softmax": "softmax log_softmax softmin gumbel_softmax",
    "attention": "multi_head_attention_forward scaled_dot_product_attention bmm baddbmm",
    "view": "view reshape flatten unflatten ravel permute transpose swapaxes t movedim squeeze unsqueeze contiguous "
    "clone detach expand expand_as getitem select narrow chunk split tensor_split unbind to type float double half "
    "bfloat16 view_as reshape_as get repeat tile roll flip pad index_select unfold fold pixel_shuffle channel_shuffle",
    "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d mean amax max "
    "sum interpolate upsample boolean_dispatch fractional_max_pool2d",
    "dropout": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout",
}
_KINDS: dict[str, OpKind] = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_PRODUCTS = frozenset({"matmul", "mm", "addmm", "rmatmul", "einsum", "tensordot", "mv"})
_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "truediv", "radd", "rsub", "rmul", "rtruediv", "cat", "concat"})
_ARITHMETIC |= {"concatenate", "stack", "hstack", "vstack", "where", "lerp", "addcmul", "iadd", "isub", "imul", "neg"}
_DUNDER = {"and": "bitwise_and", "or": "bitwise_or"}


def plain_name(function: object) -> str:
    """A function's name as a user would say it: ``Tensor.__matmul__`` and ``relu_`` become "matmul" and "relu"."""
    name = str(getattr(function, "__name__", type(function).__name__))
    stripped = name.strip("_")
    if name == "_max_pool2d":
        return "max_pool2d"
    return _DUNDER.get(stripped, stripped)


def kind_of(name: str, data_inputs: int, weighted: bool) -> OpKind:
    """The kind of a call.

    Args:
        name: from :func:`plain_name`.
        data_inputs: how many of its tensors depend on the batch.
        weighted: whether it reads a parameter, or something computed from parameters alone.
    """
    if name in ("max", "min") and data_inputs > 1:  # the larger of two, not the largest of one
        return "merge"
    known = _KINDS.get(name)
    if known is not None:
        return known
    if name in _PRODUCTS:
        return "linear" if weighted else "attention"
    if name in _ARITHMETIC:
        return "merge" if data_inputs > 1 else "scale"
    return "other"
