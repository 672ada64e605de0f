"""Normalisation layers for a network that has none: put in before the activations, taken out again if wished."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.normalize.checks import check_model, check_samples, warn_depth
from unvanish.torch.normalize.layers import Kind, norm_for
from unvanish.torch.normalize.places import Place, places, unbroken_depth
from unvanish.torch.normalize.report import Inserted, NormalizationReport
from unvanish.torch.wiring import trace

_DEEP = 30  # plain nets of 30 normalised layers still learned in our measurements, of 100 hardly any


def insert_normalization_(
    model: nn.Module, kind: Kind, inputs: Any, *, optimizer: torch.optim.Optimizer | None = None
) -> NormalizationReport:
    r"""Normalise what each layer hands to its activation, in place.

    .. math::

        \phi(u) \;\to\; \phi\Big(\gamma \, \frac{u - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta\Big), \quad u = W x + b

    with mean and variance over: the batch and all positions, per feature or channel ("batch"); all features of a sample
    ("layer"); groups of them, 32 or the next smaller number that divides ("group"); "rms" divides by the root mean
    square over the features and subtracts nothing.  :math:`\gamma = 1, \beta = 0` at first.

    A norm goes behind every ``nn.Linear``, ``nn.Conv*d`` and ``nn.ConvTranspose*d`` whose output goes, alone, into an
    activation (a module or a function, views, pooling and dropout may lie between) that another layer reads.  Not
    where a norm stands already, in front, behind or behind the activation; not in the head; not at frozen layers.

    ====== ============================== ====================================== ======================================
    kind   (samples, features)            (samples, ..., features)               (samples, channels, ...)
    ====== ============================== ====================================== ======================================
    batch  ``BatchNorm1d``                ``BatchNorm1d`` over all positions     ``BatchNorm1d/2d/3d``
    layer  ``LayerNorm``                  ``LayerNorm`` at each position         ``GroupNorm(1)``: the whole sample
    group  ``GroupNorm``                  ``GroupNorm`` at each position         ``GroupNorm``
    rms    ``RMSNorm``                    ``RMSNorm`` at each position           ``RMSNorm`` over channels per position
    ====== ============================== ====================================== ======================================

    ``GroupNorm(1)`` for images is the layer normalisation of its paper, with one gain per channel, so that images may
    be of any size.

    Your parameters keep their names and values: the norm of ``fc`` is its child ``fc.norm``, called by a forward hook.
    Copies, pickles, ``state_dict`` and ``torch.compile`` (of the model after this) keep it.  The layer's bias stays; in
    front of a norm that subtracts the mean it has no effect any more.

    New parameters join the optimizer's group of their layer, so that its learning rate, its schedule and its weight
    decay hold for them; a group of their own would be outside of schedulers that exist already.

    Normalisation does not cure plain depth: behind BatchNorm the gradient of a plain ReLU net grows by 1.21 per layer,
    whatever the weights, and LayerNorm lets samples become alike.  It belongs with residual connections.

    Args:
        model: the network, before ``torch.compile`` and ``DistributedDataParallel``.
        kind: "batch", "layer", "group" or "rms".
        inputs: what the model is called with, a batch as in training: a tensor, a tuple of positional arguments or a
            mapping of keyword arguments.
        optimizer: gets the new parameters; its state for the others is not touched.

    Returns:
        A report: what was inserted, what not and why; its ``remove()`` undoes it.

    Raises:
        ValueError: unknown kind, a wrapped model, no layer that can get a norm, or BatchNorm for one sample.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> report = insert_normalization_(net, "batch", torch.randn(16, 4), optimizer=optimizer)
        >>> [new.layer for new in report.inserted], net[0].norm.num_features
        (['0'], 8)
        >>> print(report.left_out[0].layer, report.left_out[0].reason, sep=": ")
        2: no activation follows it alone

    Sources: Ioffe and Szegedy 2015, Batch normalization; Ba, Kiros and Hinton 2016, Layer normalization; Wu and He
    2018, Group normalization; Zhang and Sennrich 2019, Root mean square layer normalization. The growth sqrt(pi /
    (pi - 1)) behind BatchNorm: Yang et al. 2019, A mean field theory of batch normalization.
    """
    check_model(model, kind)
    wiring = trace(model, inputs)
    found, left = places(model, wiring, kind)
    if not found:
        reasons = "\n".join(f"  {old.layer}: {old.reason}" for old in left) or "  it has no linear layer or convolution"
        raise ValueError(
            f"insert_normalization_: nothing to normalise in {type(model).__name__}.\n{reasons}\nExpected a layer (a "
            "module, not a function) whose activation another layer reads. Write the layers as modules, or leave the "
            "model as it is."
        )
    if kind == "batch":
        check_samples(found)
    depth = unbroken_depth(wiring, {index for place in found for index in place.ops})
    if depth >= _DEEP:
        warn_depth(kind, depth)
    inserted = tuple(_insert(place, kind, optimizer) for place in found)
    return NormalizationReport(kind, inserted, tuple(left), lambda: _remove([p.layer for p in found], optimizer))


def normalize_output(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
    """The forward hook: it finds the norm in the layer it is called for, so that a copy uses its own."""
    norm = layer.norm
    assert isinstance(norm, nn.Module)
    normal: Tensor = norm(output)
    return normal


def _insert(place: Place, kind: Kind, optimizer: torch.optim.Optimizer | None) -> Inserted:
    norm = norm_for(kind, place.layer, len(place.shape))
    place.layer.add_module("norm", norm)
    place.layer.register_forward_hook(normalize_output)
    shown = str(getattr(norm, "norm", norm))
    if norm is not getattr(norm, "norm", norm):
        shown = f"{type(norm).__name__}({shown})"
    return Inserted(place.name, shown, _join(optimizer, place, list(norm.parameters())))


def _join(optimizer: torch.optim.Optimizer | None, place: Place, new: list[nn.Parameter]) -> int | None:
    """The parameters into the optimizer's group of their layer's weight."""
    if optimizer is None:
        return None
    weights = {id(parameter) for parameter in place.layer.parameters()} - {id(parameter) for parameter in new}
    for index, group in enumerate(optimizer.param_groups):
        if any(id(parameter) in weights for parameter in group["params"]):
            group["params"].extend(new)
            return index
    warnings.warn(
        f"insert_normalization_: the optimizer does not train {place.name}, so it does not train its norm either. "
        "Add the norm's parameters to the optimizer yourself if it should.",
        stacklevel=4,
    )
    return None


def _remove(layers: list[Any], optimizer: torch.optim.Optimizer | None) -> None:
    gone: set[int] = set()
    for layer in layers:
        hooks = [key for key, hook in layer._forward_hooks.items() if hook is normalize_output]
        for key in hooks:
            del layer._forward_hooks[key]
            gone |= {id(parameter) for parameter in layer.norm.parameters()}
            del layer.norm
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        for parameter in [p for p in group["params"] if id(p) in gone]:
            optimizer.state.pop(parameter, None)
        group["params"][:] = [p for p in group["params"] if id(p) not in gone]
