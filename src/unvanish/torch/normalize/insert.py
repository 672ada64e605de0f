"""Normalisation layers for a network that has none: put in before the activations, taken out again if wished."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unvanish.torch.normalize.checks import check_model, check_optimizer, check_samples, warn_depth
from unvanish.torch.normalize.joining import groups_for, join, leave
from unvanish.torch.normalize.layers import Kind, Layer, norm_for
from unvanish.torch.normalize.places import places, unbroken_depth
from unvanish.torch.normalize.report import Inserted, NormalizationReport
from unvanish.torch.wiring import trace, with_activations

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
    activation (a module, a function, or several ops that you wrote by hand such as ``x * torch.sigmoid(x)``; views,
    pooling and dropout may lie between) that another layer reads.  Not where a norm stands already, in front, behind or
    behind the activation; not in the head; not at frozen layers.

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

    New parameters join the optimizer's group of their layer (of its bias, where that has another than the weight), so
    that its learning rate, its schedule and its weight decay hold for them; a group of their own would be outside of
    schedulers that exist already.

    To resume, insert the same kind into the new model *before* anything is loaded; the optimizer may be made before or
    after that, in both cases its parameters have the order of ``model.parameters()``.  Where groups were put together
    in another order, repeat the calls of the first run in their order: ``load_state_dict`` of an optimizer knows
    parameters by number, and most do not notice when the state is another's.

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
        ValueError: unknown kind, no model or a wrapped one, no optimizer, a batch without samples or BatchNorm for one,
            no layer that can get a norm.  Nothing is changed then.

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
    check_optimizer(optimizer)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    wiring = with_activations(trace(model, inputs), like)
    found, left = places(model, wiring, kind)
    if not found:
        reasons = "\n".join(f"  {old.layer}: {old.reason}" for old in left) or "  it has no linear layer or convolution"
        raise ValueError(
            f"insert_normalization_: nothing to normalise in {type(model).__name__}.\n{reasons}\nExpected a layer (a "
            "module, not a function) whose activation another layer reads. Write the layers as modules, or leave the "
            "model as it is."
        )
    check_samples(found, kind)
    depth = unbroken_depth(wiring, {index for place in found for index in place.ops})
    if depth >= _DEEP:
        warn_depth(kind, depth)
    groups = groups_for(optimizer, found)
    norms = [norm_for(kind, place.layer, len(place.shape)) for place in found]
    # nothing is checked any more below, and nothing was changed above
    for place, norm in zip(found, norms, strict=True):
        place.layer.add_module("norm", norm)
        place.layer.register_forward_hook(normalize_output)
    if optimizer is not None:
        join(optimizer, model, list(zip(norms, groups, strict=True)))
    inserted = tuple(Inserted(p.name, _shown(n), g) for p, n, g in zip(found, norms, groups, strict=True))
    return NormalizationReport(kind, inserted, tuple(left), lambda: _remove([p.layer for p in found], optimizer))


def normalize_output(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
    """The forward hook: it finds the norm in the layer it is called for, so that a copy uses its own."""
    norm = layer.norm
    assert isinstance(norm, nn.Module)
    normal: Tensor = norm(output)
    return normal


def _shown(norm: nn.Module) -> str:
    inner = getattr(norm, "norm", norm)
    return str(norm) if inner is norm else f"{type(norm).__name__}({inner})"


def _remove(layers: list[Layer], optimizer: torch.optim.Optimizer | None) -> None:
    gone: set[int] = set()
    for layer in layers:
        hooks = [key for key, hook in layer._forward_hooks.items() if hook is normalize_output]
        for key in hooks:
            del layer._forward_hooks[key]
            gone |= {id(parameter) for parameter in layer.get_submodule("norm").parameters()}
            del layer.norm
    if optimizer is not None:
        leave(optimizer, gone)
