"""What is refused, and what is warned of, before norms are inserted."""

from __future__ import annotations

import warnings

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from unvanish.torch.normalize.layers import KINDS
from unvanish.torch.normalize.places import Place

_FEW = 8  # Wu and He 2018, figure 1: the error of BatchNorm grows fast below 8 samples


def check_model(model: nn.Module, kind: str) -> None:
    """A kind that exists, and a model whose structure nobody has read yet."""
    if kind not in KINDS:
        raise ValueError(
            f"insert_normalization_: kind={kind!r} is unknown. Expected one of {', '.join(map(repr, KINDS))}. "
            "Choose 'layer' where batches are small or the model reads sequences, else 'batch'."
        )
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"insert_normalization_: the model is a {type(model).__name__}. Expected the nn.Module whose layers are to "
            "get norms. Give model first, then the kind, then a batch."
        )
    if isinstance(model, DistributedDataParallel) or isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise ValueError(
            f"insert_normalization_: the model is wrapped in {type(model).__name__}, which has read its parameters and "
            "its code already. Expected the plain model. Insert the norms first, then compile or distribute it."
        )


def check_optimizer(optimizer: object) -> None:
    """One of torch's kind, or None."""
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"insert_normalization_: optimizer is a {type(optimizer).__name__}. Expected a torch.optim.Optimizer, "
            "which gets the new parameters, or None. Make the optimizer first and pass it, or make it afterwards."
        )


def check_samples(found: list[Place], kind: str) -> None:
    """Enough samples for statistics over the batch."""
    samples = min(place.shape[0] for place in found)
    if samples == 0:
        raise ValueError(
            "insert_normalization_: the batch has no samples. Expected a batch as in training. "
            "Look at the data loader, or give a batch of random numbers of the same shape."
        )
    if kind != "batch":
        return
    if samples == 1:
        raise ValueError(
            "insert_normalization_: kind='batch' with a batch of 1 sample. Expected several: statistics over one "
            "sample say nothing of the batch. Pass a batch as in training, or choose 'layer', 'group' or 'rms'."
        )
    if samples < _FEW:
        warnings.warn(
            f"insert_normalization_: batch statistics over {samples} samples are noisy, and differ from those used in "
            f"evaluation. Use batches of at least {_FEW}, or 'layer', 'group' or 'rms'.",
            stacklevel=3,
        )


def warn_depth(kind: str, depth: int) -> None:
    """What many normalised layers in a row do, and what to do instead."""
    why = (
        "behind BatchNorm the gradient of a plain ReLU net grows by a factor 1.21 per layer"
        if kind == "batch"
        else "it keeps the size of the signal, but in a plain net the samples become alike"
    )
    warnings.warn(
        f"insert_normalization_: {depth} layers in a row without a residual connection. Normalisation does not cure "
        f"plain depth: {why}. Add residual connections, or initialise the plain net for its depth instead.",
        stacklevel=3,
    )
