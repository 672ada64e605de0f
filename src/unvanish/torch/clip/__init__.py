"""Clipping, and its other side: gradients that are too small are raised to a floor.

===========================  ================================================================================
``clip_grad_value_``         every entry into ``[minimum, maximum]``
``clip_grad_tensor_norm_``   the norm of every tensor into ``[floor, maximum]``
``clip_grad_global_norm_``   the norm of all of them together to at most ``maximum``, each at least ``floor``
``clip_grad_unit_norm_``     the norm of every unit to a share of the norm of its weights (AGC)
``AutoClip``                 the global norm to a quantile of the last ones
``ZClip``                    the global norm, where it is an outlier among the last ones
===========================  ================================================================================

All read the gradients once (without Numba, extra ``fast``, a second time where a norm leaves the range of float32; on a
GPU by value where norms do not settle it), write nothing where nothing is clipped, are right from 1e-44 to 1e38 in
float32, stop at NaN and Inf by naming the parameter, and return a ``ClipReport`` with the true norm.  Call them between
``backward()`` and ``optimizer.step()``, on a module, on named parameters, or on parameters.

A norm beyond its bound by no more than rounding (3e-5 of it in float32, 5e-4 in float16, 4e-3 in bfloat16) is left as
it is: else half of what was clipped once would be written again.

Distributed tensors (FSDP2, tensor parallel) have the norm of the whole, on any number of meshes, mixed with plain ones.
Plain tensors are taken to be the same in every process, as under DDP; the flat parameters of FSDP1 and the stages of a
pipeline are not, and get the norm of what this process holds.

The numbers that decide come to the host in one transfer per device and dtype, so on an accelerator a call waits for
the backward pass: who does not know the norm cannot leave the gradients unwritten.
"""

from __future__ import annotations

from unvanish.torch.clip.by_norm import clip_grad_global_norm_, clip_grad_tensor_norm_
from unvanish.torch.clip.by_unit import clip_grad_unit_norm_
from unvanish.torch.clip.by_value import clip_grad_value_
from unvanish.torch.clip.report import ClipReport, NonFinite
from unvanish.torch.clip.running import AutoClip, ZClip

__all__ = [
    "AutoClip",
    "ClipReport",
    "NonFinite",
    "ZClip",
    "clip_grad_global_norm_",
    "clip_grad_tensor_norm_",
    "clip_grad_unit_norm_",
    "clip_grad_value_",
]
